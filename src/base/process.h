// Child processes: the one way to start another program.
//
// A Process owns its child: the destructor kills and reaps it, and the child dies with the thread's process
// even when that is killed (PR_SET_PDEATHSIG). Threads: one at a time per Process.
// Errors: kNotFound when the program is not there, kIo when it cannot be started.
//
//   auto out = run_process({"pip", "download", "x"}, {.deadline = Deadline::after_ms(60'000)});
//   if (out.ok() && out->exit_code == 0) use(out->stdout_text);
//
//   ASSIGN_OR_RETURN(Process child, Process::start({"/proc/self/exe", "worker"}, {.env = {{"RANK", "1"}}}));
//   child.wait(Deadline::after_ms(1000));
#pragma once

#include <sys/types.h>

#include <csignal>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"

namespace flywheel {

struct ProcessOptions {
  std::map<std::string, std::string> env;  // added to this process's environment
  std::string folder;                      // working folder; empty: this process's
  std::string output_file;                 // stdout and stderr appended there; empty: inherited
  int input_fd = -1;                       // read as stdin; -1: inherited
  std::vector<int> keep_fds;               // descriptors to leave open in the child, same numbers
  bool new_group = false;  // a process group of its own: a terminal's Ctrl-C does not reach it
  bool die_with_parent = true;
};

struct ExitStatus {
  int exit_code = 0;  // 128 + signal when killed by one
  int signal = 0;
};

class Process {
 public:
  static Result<Process> start(const std::vector<std::string>& command, const ProcessOptions& options = {});
  Process() = default;
  ~Process();
  Process(Process&& other) noexcept { *this = std::move(other); }
  Process& operator=(Process&& other) noexcept;

  pid_t pid() const { return pid_; }
  // Not ended yet. Reaps the child if it has ended.
  bool running();
  // kDeadline while it still runs. After the first success gives the same answer again.
  Result<ExitStatus> wait(Deadline deadline);
  void signal(int number);
  // SIGTERM, then SIGKILL after `grace_ms`; returns when it is gone.
  ExitStatus stop(int64_t grace_ms = 2000);
  // Gives up ownership: the destructor leaves the child alone.
  pid_t release();

 private:
  pid_t pid_ = -1;
  std::optional<ExitStatus> ended_;
};

struct RunOptions {
  ProcessOptions process;
  std::string input;  // written to stdin, then closed
  Deadline deadline = Deadline::after_ms(60'000);
  size_t max_output_bytes = size_t{64} << 20;  // more: kFull
};

struct RunOutput {
  int exit_code = 0;
  std::string stdout_text, stderr_text;
};

// Runs to the end and collects what it printed. Past the deadline the child is killed: kDeadline.
Result<RunOutput> run_process(const std::vector<std::string>& command, const RunOptions& options = {});

}  // namespace flywheel
