// A mesh over two "hosts": network namespaces joined by veth, TCP with CURVE between them. One side is cut
// off in the middle of a run; the run recovers and ends with the bits of the undisturbed one. Also: a worker
// without the key of the run is refused. Exit 77 (skipped) where namespaces may not be made.
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include <csignal>

#include "base/process.h"
#include "runtime/transport.h"
#include "toy_training.h"

namespace flywheel::runtime {
namespace {

bool command(const std::vector<std::string>& words) {
  const auto done = run_process(words, {.deadline = Deadline::after_ms(10'000)});
  if (done.ok() && done->exit_code == 0) return true;
  std::fprintf(stderr, "%s: %s\n", words[1].c_str(),
               done.ok() ? done->stderr_text.c_str() : done.error().message.c_str());
  return false;
}

// P-ctl 10.77.0.1 with a bridge, P-n1 .11, P-n2 .12. Nothing outside them is reached.
class Network {
 public:
  Network() : prefix_("fw" + std::to_string(::getpid())) {}
  ~Network() {
    for (const char* name : {"-n1", "-n2", "-ctl"}) (void)run_process({"ip", "netns", "del", prefix_ + name});
  }
  bool up() {
    const std::string ctl = prefix_ + "-ctl";
    bool ok = command({"ip", "netns", "add", ctl}) && command({"ip", "-n", ctl, "link", "set", "lo", "up"}) &&
              command({"ip", "-n", ctl, "link", "add", "br0", "type", "bridge"}) &&
              command({"ip", "-n", ctl, "addr", "add", "10.77.0.1/24", "dev", "br0"}) &&
              command({"ip", "-n", ctl, "link", "set", "br0", "up"});
    for (const std::string i : {"1", "2"}) {
      const std::string host = prefix_ + "-n" + i;
      ok = ok && command({"ip", "netns", "add", host}) &&
           command({"ip", "-n", host, "link", "set", "lo", "up"}) &&
           command({"ip", "-n", ctl, "link", "add", "v" + i, "type", "veth", "peer", "name", "eth0", "netns",
                    host}) &&
           command({"ip", "-n", ctl, "link", "set", "v" + i, "master", "br0", "up"}) &&
           command({"ip", "-n", host, "addr", "add", "10.77.0.1" + i + "/24", "dev", "eth0"}) &&
           command({"ip", "-n", host, "link", "set", "eth0", "up"});
    }
    return ok;
  }
  bool link(int host, const char* state) {
    return command({"ip", "-n", prefix_ + "-ctl", "link", "set", "v" + std::to_string(host), state});
  }
  std::vector<std::string> enter(const std::string& name) const {
    return {"nsenter", "--net=/run/netns/" + prefix_ + "-" + name};
  }

 private:
  std::string prefix_;
};

// Runs inside P-ctl. Waits with a file at the step where the outside should cut the link.
int program(const std::string& folder, const std::string& prefix1, const std::string& prefix2, bool cut) {
  ControllerOptions options = toy_options(folder);
  options.address = "10.77.0.1";
  options.lease_ms = 3000;
  auto controller = Controller::open(options);
  if (!controller.ok()) return std::fprintf(stderr, "%s\n", controller.error().message.c_str()), 1;
  MeshOptions hosts;
  hosts.hosts = {{"n1", {"nsenter", "--net=" + prefix1}, "10.77.0.11"},
                 {"n2", {"nsenter", "--net=" + prefix2}, "10.77.0.12"}};
  auto mesh = (*controller)->mesh("toy", {{"data", 2}}, hosts);
  if (!mesh.ok()) return std::fprintf(stderr, "%s\n", mesh.error().message.c_str()), 1;
  const auto hash = toy_training(*mesh, 150, [&](int step, const Mesh&) {
    if (cut && step == 60) {
      write_file(folder + "/cut", "").value();
      while (!path_exists(folder + "/is_cut")) ::usleep(2000);
    }
  });
  if (!hash.ok()) return std::fprintf(stderr, "%s\n", hash.error().message.c_str()), 1;
  const int recoveries = mesh->status().recoveries;
  write_file(folder + "/hash", *hash).value();
  write_file(folder + "/recoveries", std::to_string(recoveries)).value();
  return (*controller)->close().ok() ? 0 : 1;
}

Result<std::string> run_once(Network& network, const std::string& folder,
                             const std::vector<std::string>& paths, bool cut) {
  std::vector<std::string> words = network.enter("ctl");
  words.insert(words.end(), {"/proc/" + std::to_string(::getpid()) + "/exe", "program", folder, paths[0],
                             paths[1], cut ? "cut" : ""});
  ASSIGN_OR_RETURN(Process child, Process::start(words));
  const Deadline limit = Deadline::after_ms(90'000);
  while (cut && !path_exists(folder + "/cut") && child.running() && !limit.expired()) ::usleep(2000);
  if (cut) {
    if (!network.link(2, "down")) return make_error(ErrorCode::kUnavailable, "cannot cut the link");
    write_file(folder + "/is_cut", "").value();
    ::usleep(2'500'000);  // long enough to be noticed and for a first replacement to fail to come up
    if (path_exists(folder + "/hash"))
      return make_error(ErrorCode::kInvalid, "the run ended with its second host cut off");
    if (!network.link(2, "up")) return make_error(ErrorCode::kUnavailable, "cannot mend the link");
  }
  ASSIGN_OR_RETURN(const ExitStatus status, child.wait(limit));
  if (status.exit_code != 0)
    return make_error(ErrorCode::kAborted, "the program ended with {}", status.exit_code);
  return read_file(folder + "/hash");
}

// Same network, other key: the handshake fails, and nothing it says arrives.
bool refuses_strangers() {
  Transport ours(Keys::make().value()), theirs(Keys::make().value());
  auto server = ours.bind(ZMQ_ROUTER, "tcp://127.0.0.1:*").value();
  Keys half = ours.keys();  // knows whom it talks to, but not the run's client key
  half.client_public = theirs.keys().client_public, half.client_secret = theirs.keys().client_secret;
  Transport stranger(half), worker(ours.keys());
  auto bad = stranger.connect(ZMQ_DEALER, server.endpoint).value();
  auto good = worker.connect(ZMQ_DEALER, server.endpoint, "good").value();
  (void)bad.send("let me in");
  (void)good.send("hello");
  zmq::message_t from;
  bool good_came = false, bad_came = false;
  for (const Deadline until = Deadline::after_ms(2000);
       !until.expired() && !(good_came && ours.refused() > 0);) {
    if (server.zmq.recv(from, zmq::recv_flags::dontwait)) {
      (from.to_string_view() == "good" ? good_came : bad_came) = true;
      (void)server.zmq.recv(from);
    }
    ::usleep(1000);
  }
  return good_came && !bad_came && ours.refused() > 0;
}

int test() {
  if (!refuses_strangers()) return std::printf("a worker without the key was not refused\n"), 1;
  std::printf("a worker without the key is refused\n");
  Network network;
  if (::geteuid() != 0 || !network.up())
    return std::printf("skipped: network namespaces need root and iproute2\n"), 77;
  const std::vector<std::string> paths = {network.enter("n1")[1].substr(6), network.enter("n2")[1].substr(6)};
  const TempFolder calm, hurt;
  const auto expected = run_once(network, calm.path(), paths, false);
  if (!expected.ok()) return std::printf("undisturbed: %s\n", expected.error().to_string().c_str()), 1;
  const Stopwatch clock;
  const auto hash = run_once(network, hurt.path(), paths, true);
  if (!hash.ok()) return std::printf("cut: %s\n", hash.error().to_string().c_str()), 1;
  const std::string recoveries = read_file(hurt / "recoveries").value_or("?");
  std::printf("undisturbed %s\ncut off     %s (%s recoveries, %.1f s)\n", expected->c_str(), hash->c_str(),
              recoveries.c_str(), clock.seconds());
  return *hash == *expected && recoveries != "0" ? 0 : 1;
}

}  // namespace
}  // namespace flywheel::runtime

int main(int argc, char** argv) {
  using namespace flywheel::runtime;
  if (argc > 1 && std::string(argv[1]) == "worker") return worker_main();
  flywheel::init_logging();
  if (argc == 6 && std::string(argv[1]) == "program")
    return program(argv[2], argv[3], argv[4], std::string(argv[5]) == "cut");
  return test();
}
