// A mesh over two "hosts" (network.h) and its controller on a third, TCP with CURVE between them. One side is
// cut off in the middle of a toy's run; the run recovers and ends with the bits of the undisturbed one. Also:
// a worker without the key of the run is refused. Exit 77 (skipped) where namespaces may not be made. The
// real trainer: train_two_hosts_test.cc.
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "base/process.h"
#include "network.h"
#include "runtime/transport.h"
#include "toy_training.h"

namespace flywheel::runtime {
namespace {

// Runs on host ctl. Waits with a file at the step where the outside should cut the link.
int program(const std::string& folder, const std::string& space1, const std::string& space2, bool cut) {
  ControllerOptions options = toy_options(folder);
  options.address = "10.77.8.1";
  options.lease_ms = 3000;
  auto controller = Controller::open(options);
  if (!controller.ok()) return std::fprintf(stderr, "%s\n", controller.error().message.c_str()), 1;
  MeshOptions hosts;
  hosts.hosts = {{"n1", {"nsenter", space1}, "10.77.8.2"}, {"n2", {"nsenter", space2}, "10.77.8.3"}};
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

Result<std::string> run_once(const Network& network, const std::string& folder, bool cut) {
  const std::string self = "/proc/" + std::to_string(::getpid()) + "/exe";
  ASSIGN_OR_RETURN(Process child,
                   Process::start(network.inside("ctl", {self, "program", folder, network.prefix("n1")[1],
                                                         network.prefix("n2")[1], cut ? "cut" : ""})));
  const Deadline limit = Deadline::after_ms(90'000);
  while (cut && !path_exists(folder + "/cut") && child.running() && !limit.expired()) ::usleep(2000);
  if (cut) {
    if (!network.link("n2", "down")) return make_error(ErrorCode::kUnavailable, "cannot cut the link");
    write_file(folder + "/is_cut", "").value();
    ::usleep(2'500'000);  // long enough to be noticed and for a first replacement to fail to come up
    if (path_exists(folder + "/hash"))
      return make_error(ErrorCode::kInvalid, "the run ended with its second host cut off");
    if (!network.link("n2", "up")) return make_error(ErrorCode::kUnavailable, "cannot mend the link");
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
  Network network({"ctl", "n1", "n2"});
  if (const std::string why = network.up(); !why.empty())
    return std::printf("skipped: %s\n", why.c_str()), 77;
  const TempFolder calm, hurt;
  const auto expected = run_once(network, calm.path(), false);
  if (!expected.ok()) return std::printf("undisturbed: %s\n", expected.error().to_string().c_str()), 1;
  const Stopwatch clock;
  const auto hash = run_once(network, hurt.path(), true);
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
