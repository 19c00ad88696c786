// A worker process: takes commands from its controller and runs the operations that this program is linked
// with.
//
// Three threads: the first runs commands (executor.h), one talks (heartbeats, fences, meetings, snapshots for
// peers) and is never behind a running operation, one makes snapshots. It ends when told to, when its parent
// dies (the launcher asks the kernel for that), and when it has not heard of its controller for the lease:
// so no worker outlives its run, whatever was cut.
//
// What it must know comes in its environment, FLYWHEEL_WORKER and FLYWHEEL_WORKER_KEYS. Where the first is
// not set (behind a prefix) lines NAME=VALUE are read from stdin to its end, and become its environment:
// keys are on no command line, which other users of the host could read.
//
//   int main(int argc, char** argv) {
//     if (argc > 1 && std::string_view(argv[1]) == "worker") return flywheel::runtime::worker_main();
//     ...
//   }
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/result.h"
#include "runtime/lines.h"
#include "runtime/messages.h"
#include "runtime/transport.h"

namespace flywheel::runtime {

// What a worker must know to find its controller; travels in its environment.
struct WorkerConfig {
  LineEndpoints line;   // of the controller
  std::string control;  // the same
  std::string peer;     // where to listen for peers; a port of * is chosen
  std::string host;     // ranks with equal text share memory
  WorkerId id;
  int64_t heartbeat_ms = 100;
  int64_t lease_ms = 5000;
  std::vector<std::string> needs;  // to be met before it says hello
  Keys keys;
  std::map<std::string, std::string> to_env() const;
  static Result<WorkerConfig> from_env();
};

// Exit code of a worker that has not heard of its controller for its lease, or whose line to it is gone.
constexpr int kLeaseOverExitCode = 3;

// The name by which a controller's sockets know a worker: "mesh/rank/incarnation".
std::string identity_of(const WorkerId& id);

// Runs until told to end; the exit code.
int run_worker(const WorkerConfig& config);
// The same with the configuration from the environment or stdin.
int worker_main();

}  // namespace flywheel::runtime
