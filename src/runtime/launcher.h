// How worker processes come to be: one interface, whatever starts them.
//
// LocalLauncher starts processes on this machine; with a host's `prefix` (`ssh node7`, `nsenter --net=...`)
// in front of the command they start elsewhere. ssh does not pass the environment on, so with a prefix the
// worker's part of it is written to its stdin as well (worker.h). Cluster managers (Slurm, Ray, MPI,
// Kubernetes) implement the same interface.
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
  virtual Result<std::unique_ptr<WorkerProcess>> start(const WorkerSpec& spec) = 0;
};

struct LocalLauncherOptions {
  std::vector<std::string> command = {"/proc/self/exe", "worker"};
  std::string log_folder;  // a file per worker; empty: they share this process's stderr
};
std::unique_ptr<Launcher> make_local_launcher(LocalLauncherOptions options = {});

}  // namespace flywheel::runtime
