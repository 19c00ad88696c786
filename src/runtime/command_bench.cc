// How quickly a controller's commands reach a worker and come back, one at a time and many in flight.
//
// Prints one JSON line. What the machine allows, measured beside it:
//   raw_us       one at a time: the same bytes there and back between two processes over a bare unix socket,
//                both asleep until they come
//   limit_per_s  many in flight: the bytes of the commands and of their outcomes, in pieces of the same size,
//                through such a socket, behind one write() and fdatasync() per group of the same size; no
//                command is made, matched, run or kept. This is a limit.
// `busy` ones are measured beside as many processes that compute as there are cores, as in training.
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <set>
#include <thread>
#include <vector>

#include "base/cpu.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/posix.h"
#include "runtime/command_log.h"
#include "runtime/controller.h"
#include "runtime/messages.h"
#include "runtime/operation.h"
#include "runtime/worker.h"

namespace flywheel::runtime {
namespace {

REGISTER_OPERATION("bench.nothing", Kind::kStateful,
                   [](Call&) -> Result<std::string> { return std::string(); });

double percentile(std::vector<double>& values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

// Something to do for every core, until it goes.
class BusyCores {
 public:
  BusyCores() {
    for (int i = 0; i < usable_cores(); ++i) {
      const pid_t child = ::fork();
      if (child == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (volatile uint64_t n = 0;;) n = n + 1;
      }
      children_.push_back(child);
    }
  }
  ~BusyCores() {
    for (const pid_t child : children_) {
      ::kill(child, SIGKILL);
      ::waitpid(child, nullptr, 0);
    }
  }

 private:
  std::vector<pid_t> children_;
};

struct Trip {
  double median_us = 0, p99_us = 0;
};

// A child process that runs `serve` at the other end of a unix stream socket, and this process's end of it.
class RawPeer {
 public:
  template <typename Serve>
  explicit RawPeer(const Serve& serve) {
    std::array<int, 2> ends{};
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0, "no sockets");
    child_ = ::fork();
    if (child_ == 0) {
      ::close(ends[0]);
      serve(ends[1]);
      ::_exit(0);
    }
    ::close(ends[1]);
    fd_ = Descriptor(ends[0]);
  }
  ~RawPeer() {
    fd_.reset();  // where `serve` ends
    ::waitpid(child_, nullptr, 0);
  }
  int fd() const { return fd_.get(); }

 private:
  pid_t child_ = -1;
  Descriptor fd_;
};

bool send_all(int fd, std::string_view bytes) {
  return write_all(fd, "the peer", bytes).ok();
}

Trip raw_round_trip(int n) {
  RawPeer peer([&](int fd) {
    std::array<char, 4096> bytes{};
    for (ssize_t got = 0; (got = ::read(fd, bytes.data(), bytes.size())) > 0;)
      send_all(fd, {bytes.data(), static_cast<size_t>(got)});
  });
  std::vector<double> times;
  std::array<char, 4096> bytes{};
  for (int i = 0; i < n; ++i) {
    const Stopwatch clock;
    CHECK(send_all(peer.fd(), {bytes.data(), 60}) && ::read(peer.fd(), bytes.data(), bytes.size()) == 60,
          "the peer is gone");
    times.push_back(clock.seconds() * 1e6);
  }
  return {percentile(times, 0.5), percentile(times, 0.99)};
}

ControllerOptions options_in(const TempFolder& folder, LogSync sync) {
  ControllerOptions options;
  options.folder = folder / "run";
  options.run = "bench";
  options.sync = sync;
  return options;
}

Trip round_trip(LogSync sync, int n) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder, sync)).value();
  const Mesh mesh = controller->mesh("bench", {{"data", 1}}).value();
  std::vector<double> times;
  for (int i = 0; i < n; ++i) {
    const Stopwatch clock;
    mesh.call("bench.nothing").wait().value();
    if (i >= n / 10) times.push_back(clock.seconds() * 1e6);
  }
  return {percentile(times, 0.5), percentile(times, 0.99)};
}

struct Stream {
  double per_s = 0;
  int64_t commands = 0, groups = 0;  // of the whole run: groups are frames of the log
  uint64_t log_bytes = 0;
};

Stream pipelined(LogSync sync, int workers, int n) {
  const TempFolder folder;
  Stream stream;
  {
    auto controller = Controller::open(options_in(folder, sync)).value();
    const Mesh mesh = controller->mesh("bench", {{"data", workers}}).value();
    for (int i = 0; i < n / 10; ++i) (void)mesh.call("bench.nothing");
    mesh.call("bench.nothing").wait().value();
    const Stopwatch clock;
    for (int i = 0; i < n - 1; ++i) (void)mesh.call("bench.nothing");
    mesh.call("bench.nothing").wait().value();
    stream.per_s = n / clock.seconds();
  }
  const LogContent log = read_log(folder / "run/commands.log").value();
  std::set<uint64_t> frames;
  for (const LogRecord& record : log.records) {
    frames.insert(record.offset);
    stream.commands += record.type == RecordType::kCommand ? 1 : 0;
  }
  stream.groups = static_cast<int64_t>(frames.size());
  stream.log_bytes = log.file.size();
  return stream;
}

// `stream` once more without a controller and a worker: bytes to the disk, to another process and back.
double raw_stream(const Stream& stream) {
  constexpr size_t kCommandBatch = 128 << 10,
                   kOutcomeBatch = 64 << 10;  // as dispatch.cc and worker.cc cut them
  Command command;
  command.sequence = 1'000'000;
  command.operation = "bench.nothing";
  command.generator_key = ~uint64_t{0};
  Outcome outcome;
  outcome.digest = ~uint64_t{0};
  const size_t command_bytes = encode(command).size(), outcome_bytes = 3 + encode(outcome).size();
  RawPeer peer([&](int fd) {
    const std::string outcomes(kOutcomeBatch, 'o');
    std::string batch(kCommandBatch, '\0');
    size_t commands = 0;  // bytes of one that is not whole
    for (ssize_t got = 0; (got = ::read(fd, batch.data(), batch.size())) > 0;) {
      commands += static_cast<size_t>(got);
      for (size_t left = commands / command_bytes * outcome_bytes; left > 0;) {
        const size_t size = std::min(left, outcomes.size());
        if (!send_all(fd, std::string_view(outcomes).substr(0, size))) return;
        left -= size;
      }
      commands %= command_bytes;
    }
  });
  const TempFolder folder;
  const Descriptor log(::open((folder / "log").c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
  const std::string frame(stream.log_bytes / static_cast<uint64_t>(stream.groups), 'f');
  const std::string commands(kCommandBatch / command_bytes * command_bytes, 'c');
  const Stopwatch clock;
  std::thread receiver([&] {
    std::string batch(256 << 10, '\0');
    const auto all = static_cast<int64_t>(stream.commands) * static_cast<int64_t>(outcome_bytes);
    for (int64_t got = 0; got < all;) {
      const ssize_t n = ::read(peer.fd(), batch.data(), batch.size());
      CHECK(n > 0, "the peer is gone");
      got += n;
    }
  });
  int64_t sent = 0;
  for (int64_t group = 1; group <= stream.groups; ++group) {
    CHECK(write_all(log.get(), "the log", frame).ok() && ::fdatasync(log.get()) == 0,
          "cannot write the raw log");
    const int64_t until = stream.commands * group / stream.groups;
    for (size_t left = static_cast<size_t>(until - sent) * command_bytes; left > 0;) {
      const size_t size = std::min(left, commands.size());
      CHECK(send_all(peer.fd(), std::string_view(commands).substr(0, size)), "the peer is gone");
      left -= size;
    }
    sent = until;
  }
  receiver.join();
  const double seconds = clock.seconds();
  return static_cast<double>(stream.commands) / seconds;
}

}  // namespace
}  // namespace flywheel::runtime

int main(int argc, char** argv) {
  using namespace flywheel;
  using namespace flywheel::runtime;
  if (argc > 1 && std::string_view(argv[1]) == "worker") return worker_main();
  init_logging("warn");
  const Trip raw = raw_round_trip(5000);  // forks, and so stands before what starts threads
  Trip raw_busy, busy;
  {
    const BusyCores computing;
    raw_busy = raw_round_trip(2000);
    busy = round_trip(LogSync::kProcess, 2000);
  }
  const Trip process = round_trip(LogSync::kProcess, 5000), disk = round_trip(LogSync::kDisk, 300);
  const Stream stream = pipelined(LogSync::kDisk, 1, 300'000);
  const Json out = {
      {"raw_us", raw.median_us},
      {"limit_per_s", raw_stream(stream)},
      {"commands_a_group", static_cast<double>(stream.commands) / static_cast<double>(stream.groups)},
      {"round_trip_us", process.median_us},
      {"round_trip_p99_us", process.p99_us},
      {"round_trip_disk_us", disk.median_us},
      {"raw_busy_us", raw_busy.median_us},
      {"round_trip_busy_us", busy.median_us},
      {"pipelined_disk_per_s", stream.per_s},
      {"pipelined_process_per_s", pipelined(LogSync::kProcess, 1, 300'000).per_s},
      {"pipelined_two_workers_per_s", pipelined(LogSync::kDisk, 2, 200'000).per_s}};
  std::printf("%s\n", out.dump().c_str());
  return 0;
}
