// How quickly a controller's commands reach a worker and come back, one at a time and many in flight.
//
// Prints one JSON line. `raw_us` is the limit for one at a time: the same bytes there and back between two
// processes over the same kind of ZeroMQ socket, with nothing else done. `busy` ones are measured beside as
// many processes that compute as there are cores, as in training.
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <vector>

#include "base/cpu.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "runtime/controller.h"
#include "runtime/operation.h"
#include "runtime/transport.h"
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

Trip raw_round_trip(int n) {
  const TempFolder folder;
  const std::string there = "ipc://" + (folder / "there"), back = "ipc://" + (folder / "back");
  const pid_t child = ::fork();
  if (child == 0) {
    while (!path_exists(folder / "back")) ::usleep(100);  // bound second
    Transport transport;
    auto in = transport.connect(ZMQ_PULL, there), out = transport.connect(ZMQ_PUSH, back);
    for (int i = 0; i < n; ++i) (void)out->send(in->receive(Deadline::after_ms(10'000)).value_or(""));
    (void)in->receive(Deadline::after_ms(10'000));
    ::_exit(0);
  }
  Transport transport;
  auto out = transport.bind(ZMQ_PUSH, there).value(), in = transport.bind(ZMQ_PULL, back).value();
  std::vector<double> times;
  const std::string bytes(60, 'x');
  while (!out.send(bytes).ok()) ::usleep(1000);
  for (int i = 0; i < n; ++i) {
    const Stopwatch clock;
    if (i > 0) (void)out.send(bytes);
    (void)in.receive(Deadline::after_ms(10'000));
    times.push_back(clock.seconds() * 1e6);
  }
  (void)out.send("");
  ::waitpid(child, nullptr, 0);
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

double pipelined(LogSync sync, int workers, int n) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder, sync)).value();
  const Mesh mesh = controller->mesh("bench", {{"data", workers}}).value();
  for (int i = 0; i < n / 10; ++i) (void)mesh.call("bench.nothing");
  mesh.call("bench.nothing").wait().value();
  const Stopwatch clock;
  for (int i = 0; i < n - 1; ++i) (void)mesh.call("bench.nothing");
  mesh.call("bench.nothing").wait().value();
  return n / clock.seconds();
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
  const Json out = {{"raw_us", raw.median_us},
                    {"round_trip_us", process.median_us},
                    {"round_trip_p99_us", process.p99_us},
                    {"round_trip_disk_us", disk.median_us},
                    {"raw_busy_us", raw_busy.median_us},
                    {"round_trip_busy_us", busy.median_us},
                    {"pipelined_disk_per_s", pipelined(LogSync::kDisk, 1, 300'000)},
                    {"pipelined_process_per_s", pipelined(LogSync::kProcess, 1, 300'000)},
                    {"pipelined_two_workers_per_s", pipelined(LogSync::kDisk, 2, 200'000)}};
  std::printf("%s\n", out.dump().c_str());
  return 0;
}
