// How worker processes come to be: one interface, whatever starts them.
//
// LocalLauncher starts processes on this machine; with a host's `prefix` (`ssh node7`, `nsenter --net=...`)
// in front of the command they start elsewhere. ssh does not pass the environment on, and srun sends it
// over the network, so with a prefix the worker's part of it is written to its stdin instead (worker.h).
// HostsLauncher (hosts_launcher.h) does so on hosts that may be lost: ssh and Slurm. SeatLauncher (seats.h)
// has processes that somebody else started do it: MPI, torchrun, Kubernetes, Ray.
//
// Ownership: a WorkerProcess owns its process: destroying it kills the process. Threads: start() and the
// processes from one thread that lives as long as they do (the kernel's death signal follows the thread).
// Errors: as base/process.h; kInvalid for a host that the launcher does not have.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/process.h"
#include "base/result.h"

namespace flywheel::runtime {

// A place where workers run.
struct Host {
  std::string name = "local";
  std::vector<std::string> prefix;  // words in front of the worker's command
  std::string address;              // its own IPv4, for peers to reach it; empty: unix sockets (one host)
  int seat = -1;                    // of SeatLauncher: which of its seats
};

struct WorkerSpec {
  std::string name;  // "train/3", for messages and log files
  Host host;
  std::map<std::string, std::string> env;  // how it finds its controller
};

class WorkerProcess {
 public:
  virtual ~WorkerProcess() = default;
  virtual std::string describe() const = 0;  // "pid 4711", "pod tiny-7-w3"
  // How it ended; nothing while it runs. Never blocks.
  virtual std::optional<ExitStatus> ended() = 0;
  // Becomes readable when the process ends; -1 where there is no such descriptor (then ended() is polled).
  virtual int exit_fd() const = 0;
  virtual void kill() = 0;
  // Whether it is held by a signal and does nothing; false where that is not known.
  virtual bool stopped() const { return false; }
  // What it said last, for a message about its end; empty where that is not known.
  virtual std::string last_words() const { return ""; }
};

class Launcher {
 public:
  virtual ~Launcher() = default;
  // Where a worker is to run that was to run on `host`, asked before each start. `failed`: how many starts in
  // a row did not come up, the last one there; 0: it is new, or its process was lost in the middle of its
  // work.
  virtual Host place(const Host& host, int failed) {
    (void)failed;
    return host;
  }
  virtual Result<std::unique_ptr<WorkerProcess>> start(const WorkerSpec& spec) = 0;
  // The thread that started processes is about to end: those that were told to end get their grace here.
  virtual void finish() {}
};

struct LocalLauncherOptions {
  std::vector<std::string> command = {"/proc/self/exe", "worker"};
  std::string log_folder;  // a file per worker; empty: they share this process's stderr
  // A signal upon which a worker's process (the prefix: srun) ends what it started elsewhere; SIGKILL follows
  // after the grace. 0: SIGKILL at once.
  int end_signal = 0;
  int64_t end_grace_ms = 3000;
};
std::unique_ptr<Launcher> make_local_launcher(LocalLauncherOptions options = {});

}  // namespace flywheel::runtime
