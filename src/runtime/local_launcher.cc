#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "base/file.h"
#include "base/posix.h"
#include "base/process_liveness.h"
#include "runtime/launcher.h"
#include "runtime/modules.h"

namespace flywheel::runtime {
namespace {

constexpr int64_t kWordsBytes = 4096;  // of a log, to look for its last line in
constexpr size_t kWordsShown = 400;

// Where a worker's output goes, and how long that file was when the worker began.
struct Output {
  std::string path;
  int64_t begin = 0;
};

// A pipe's end to read, with `text` in it. It fits: a pipe holds 64 KB.
Result<int> pipe_with(const std::string& text) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return system_error("cannot make a pipe for", "a worker");
  const auto written = write_all(ends[1], "a worker's stdin", text);
  ::close(ends[1]);
  if (written.ok()) return ends[0];
  ::close(ends[0]);
  return written.error();
}

// Processes that were asked to end: they have until their deadline. One thread, the launcher's.
class Leaving {
 public:
  ~Leaving() { wait(); }
  void wait() {
    while (!all_.empty()) {
      look();
      if (!all_.empty()) ::usleep(5000);
    }
  }
  void add(Process process, int64_t grace_ms) {
    all_.push_back({std::move(process), Deadline::after_ms(grace_ms)});
  }
  void look() {
    std::erase_if(all_, [](auto& one) {
      if (!one.first.running()) return true;
      if (one.second.expired()) ::kill(-one.first.pid(), SIGKILL);
      return one.second.expired();  // and the Process, going, reaps it
    });
  }

 private:
  std::vector<std::pair<Process, Deadline>> all_;
};

class LocalProcess : public WorkerProcess {
 public:
  LocalProcess(Process process, Output output, const LocalLauncherOptions& options,
               std::shared_ptr<Leaving> leaving)
      : process_(std::move(process)),
        output_(std::move(output)),
        end_signal_(options.end_signal),
        end_grace_ms_(options.end_grace_ms),
        leaving_(std::move(leaving)),
        exit_fd_(static_cast<int>(::syscall(SYS_pidfd_open, process_.pid(), 0))) {}
  ~LocalProcess() override {
    kill();
    if (exit_fd_ >= 0) ::close(exit_fd_);
    if (end_signal_ != 0 && process_.running()) leaving_->add(std::move(process_), end_grace_ms_);
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
    if (end_signal_ != 0) return process_.signal(end_signal_);
    if (!ended().has_value()) ::kill(-process_.pid(), SIGKILL);
    process_.signal(SIGKILL);
  }
  bool stopped() const override { return process_is_stopped(process_.pid()); }
  std::string last_words() const override {
    std::ifstream file(output_.path, std::ios::ate);
    if (!file) return "";
    const int64_t end = file.tellg();
    file.seekg(std::max(output_.begin, end - kWordsBytes));
    std::string last;
    for (std::string line; std::getline(file, line);) {
      if (!line.empty()) last = line;
    }
    return last.substr(0, kWordsShown);
  }

 private:
  Process process_;
  Output output_;
  int end_signal_ = 0;
  int64_t end_grace_ms_ = 0;
  std::shared_ptr<Leaving> leaving_;
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
    leaving_->look();
    std::vector<std::string> command = spec.host.prefix;
    command.insert(command.end(), options_.command.begin(), options_.command.end());
    ProcessOptions process{.env = spec.env, .new_group = true};
    Output output;
    if (!options_.log_folder.empty()) {
      RETURN_IF_ERROR(make_folders(options_.log_folder));
      std::string file = spec.name;
      std::replace(file.begin(), file.end(), '/', '-');
      process.output_file = options_.log_folder + "/" + file + ".log";
      std::error_code none_yet;
      const auto bytes = std::filesystem::file_size(process.output_file, none_yet);
      output = {process.output_file, none_yet ? 0 : static_cast<int64_t>(bytes)};
    }
    if (!spec.host.prefix.empty()) {
      // By stdin alone: srun would send its own environment over the network, keys and all. The names stay,
      // empty, to hide what this process has if it is a worker itself.
      std::string lines;
      for (auto& [name, value] : process.env) lines += name + "=" + std::exchange(value, "") + "\n";
      ASSIGN_OR_RETURN(process.input_fd, pipe_with(lines));
    }
    auto started = Process::start(command, process);
    if (process.input_fd >= 0) ::close(process.input_fd);
    if (!started.ok()) return started.error();
    return std::unique_ptr<WorkerProcess>(
        std::make_unique<LocalProcess>(std::move(started).value(), std::move(output), options_, leaving_));
  }

  void finish() override { leaving_->wait(); }

 private:
  std::shared_ptr<Leaving> leaving_ = std::make_shared<Leaving>();
  LocalLauncherOptions options_;
};

}  // namespace

std::unique_ptr<Launcher> make_local_launcher(LocalLauncherOptions options) {
  return std::make_unique<LocalLauncher>(std::move(options));
}

}  // namespace flywheel::runtime
