#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "base/file.h"
#include "runtime/launcher.h"
#include "runtime/modules_internal.h"

namespace flywheel::runtime {
namespace {

class LocalProcess : public WorkerProcess {
 public:
  explicit LocalProcess(Process process)
      : process_(std::move(process)),
        exit_fd_(static_cast<int>(::syscall(SYS_pidfd_open, process_.pid(), 0))) {}
  ~LocalProcess() override {
    kill();
    if (exit_fd_ >= 0) ::close(exit_fd_);
  }
  std::string describe() const override { return fmt::format("pid {}", process_.pid()); }
  std::optional<ExitStatus> ended() override {
    if (pollfd exit{exit_fd_, POLLIN, 0}; exit_fd_ >= 0 && ::poll(&exit, 1, 0) != 1) return std::nullopt;
    // What it started outside of the tree goes with it; before it is reaped, so that the number is its own.
    if (exit_fd_ >= 0 && !ended_) ::kill(-process_.pid(), SIGKILL);
    ended_ = true;
    if (process_.running()) return std::nullopt;
    const auto status = process_.wait(Deadline::after_ms(0));
    return status.ok() ? std::optional(*status) : std::nullopt;
  }
  int exit_fd() const override { return exit_fd_; }
  // The whole group: what the worker itself started goes with it. Works on a stopped process too.
  void kill() override {
    if (!ended().has_value()) ::kill(-process_.pid(), SIGKILL);
    process_.signal(SIGKILL);
  }

 private:
  Process process_;
  int exit_fd_ = -1;
  bool ended_ = false;
};

class LocalLauncher : public Launcher {
 public:
  explicit LocalLauncher(LocalLauncherOptions options) : options_(std::move(options)) {
    // A prefix (nsenter, ssh) would resolve /proc/self/exe to itself.
    if (options_.command[0] == "/proc/self/exe") options_.command[0] = this_program();
  }

  Result<std::unique_ptr<WorkerProcess>> start(const WorkerSpec& spec) override {
    std::vector<std::string> command = spec.host.prefix;
    command.insert(command.end(), options_.command.begin(), options_.command.end());
    ProcessOptions process{.env = spec.env, .new_group = true};
    if (!options_.log_folder.empty()) {
      RETURN_IF_ERROR(make_folders(options_.log_folder));
      std::string file = spec.name;
      std::replace(file.begin(), file.end(), '/', '-');
      process.output_file = options_.log_folder + "/" + file + ".log";
    }
    ASSIGN_OR_RETURN(Process started, Process::start(command, process));
    return std::unique_ptr<WorkerProcess>(std::make_unique<LocalProcess>(std::move(started)));
  }

 private:
  LocalLauncherOptions options_;
};

}  // namespace

std::unique_ptr<Launcher> make_local_launcher(LocalLauncherOptions options) {
  return std::make_unique<LocalLauncher>(std::move(options));
}

}  // namespace flywheel::runtime
