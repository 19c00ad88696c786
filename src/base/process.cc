#include "base/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "base/env.h"

extern char** environ;

namespace flywheel {
namespace {

struct Pipe {
  int read = -1, write = -1;
  Result<void> open() {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0)
      return make_error(ErrorCode::kIo, "cannot make a pipe: {}", std::strerror(errno));
    read = fds[0], write = fds[1];
    return {};
  }
  Pipe() = default;
  ~Pipe() { close_read(), close_write(); }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void close_read() {
    if (read >= 0) ::close(read);
    read = -1;
  }
  void close_write() {
    if (write >= 0) ::close(write);
    write = -1;
  }
};

// What the child needs, laid out before fork: after it only async-signal-safe calls are allowed.
struct Prepared {
  std::vector<std::string> env_text;
  std::vector<char*> argv, envp;
  std::string program;

  Prepared(const std::vector<std::string>& command, const ProcessOptions& options) {
    for (const auto& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string text = *entry;
      if (!options.env.contains(text.substr(0, text.find('=')))) env_text.push_back(text);
    }
    for (const auto& [name, value] : options.env) env_text.push_back(name + "=" + value);
    for (auto& text : env_text) envp.push_back(text.data());
    envp.push_back(nullptr);
  }
};

// Finds the program on PATH, as execvp would.
std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return ::access(name.c_str(), X_OK) == 0 ? name : "";
  std::string folders = env::get("PATH");
  if (folders.empty()) folders = "/usr/bin:/bin";
  while (!folders.empty()) {
    const size_t colon = folders.find(':');
    std::string candidate = folders.substr(0, colon) + "/" + name;
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
    folders = colon == std::string::npos ? "" : folders.substr(colon + 1);
  }
  return "";
}

struct Descriptors {
  int in = -1, out = -1, err = -1;
};

Result<pid_t> spawn(const std::vector<std::string>& command, const ProcessOptions& options, Descriptors fds) {
  CHECK(!command.empty(), "a process without a command");
  const std::string program = find_program(command[0]);
  if (program.empty()) return make_error(ErrorCode::kNotFound, "no program {} on PATH", command[0]);
  Prepared prepared(command, options);
  Pipe failure;  // carries errno if exec fails; closed by exec otherwise
  RETURN_IF_ERROR(failure.open());
  if (fds.in < 0) fds.in = options.input_fd;
  int output = -1;
  if (!options.output_file.empty()) {
    output = ::open(options.output_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (output < 0) {
      return make_error(ErrorCode::kIo, "cannot open {}: {}", options.output_file, std::strerror(errno));
    }
    if (fds.out < 0) fds.out = output;
    if (fds.err < 0) fds.err = output;
  }
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    if (output >= 0) ::close(output);
    return make_error(ErrorCode::kIo, "fork: {}", std::strerror(errno));
  }
  if (pid == 0) {
    if (options.new_group) ::setpgid(0, 0);
    if (options.die_with_parent) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(126);  // the parent went between fork and prctl
    }
    if (fds.in >= 0) ::dup2(fds.in, 0);
    if (fds.out >= 0) ::dup2(fds.out, 1);
    if (fds.err >= 0) ::dup2(fds.err, 2);
    for (const int fd : options.keep_fds) ::fcntl(fd, F_SETFD, 0);
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    int error = 0;
    if (!options.folder.empty() && ::chdir(options.folder.c_str()) != 0) error = errno;
    if (error == 0) {
      ::execve(program.c_str(), prepared.argv.data(), prepared.envp.data());
      error = errno;
    }
    [[maybe_unused]] const ssize_t n = ::write(failure.write, &error, sizeof error);
    ::_exit(127);
  }
  if (output >= 0) ::close(output);
  failure.close_write();
  int error = 0;
  ssize_t n;
  do n = ::read(failure.read, &error, sizeof error);
  while (n < 0 && errno == EINTR);
  if (n == sizeof error) {
    ::waitpid(pid, nullptr, 0);
    return make_error(ErrorCode::kIo, "cannot start {}: {}", program, std::strerror(error));
  }
  return pid;
}

ExitStatus decode(int status) {
  if (WIFSIGNALED(status)) return {128 + WTERMSIG(status), WTERMSIG(status)};
  return {WEXITSTATUS(status), 0};
}

}  // namespace

Result<Process> Process::start(const std::vector<std::string>& command, const ProcessOptions& options) {
  ASSIGN_OR_RETURN(const pid_t pid, spawn(command, options, {}));
  Process process;
  process.pid_ = pid;
  return process;
}

Process::~Process() {
  if (pid_ > 0 && running()) {
    signal(SIGKILL);
    (void)wait(Deadline::after_ms(10'000));
  }
}

Process& Process::operator=(Process&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(ended_, other.ended_);
  return *this;
}

bool Process::running() {
  return pid_ > 0 && !wait(Deadline::after_ms(0)).ok();
}

Result<ExitStatus> Process::wait(Deadline deadline) {
  CHECK(pid_ > 0, "wait for a process that was not started");
  for (int64_t pause_us = 200;; pause_us = std::min<int64_t>(pause_us * 2, 10'000)) {
    if (ended_) return *ended_;
    int status = 0;
    const pid_t got = ::waitpid(pid_, &status, WNOHANG);
    if (got == pid_) return *(ended_ = decode(status));
    if (got < 0 && errno == ECHILD) return *(ended_ = ExitStatus{});  // reaped elsewhere
    if (deadline.expired()) return make_error(ErrorCode::kDeadline, "process {} still runs", pid_);
    std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
  }
}

void Process::signal(int number) {
  if (pid_ > 0 && !ended_) ::kill(pid_, number);
}

ExitStatus Process::stop(int64_t grace_ms) {
  signal(SIGTERM);
  if (auto status = wait(Deadline::after_ms(grace_ms)); status.ok()) return *status;
  signal(SIGKILL);
  auto status = wait(Deadline::after_ms(30'000));
  return status.ok() ? *status : ExitStatus{128 + SIGKILL, SIGKILL};
}

pid_t Process::release() {
  const pid_t pid = pid_;
  pid_ = -1;
  return pid;
}

Result<RunOutput> run_process(const std::vector<std::string>& command, const RunOptions& options) {
  Pipe in, out, err;
  for (Pipe* pipe : {&in, &out, &err}) RETURN_IF_ERROR(pipe->open());
  ASSIGN_OR_RETURN(const pid_t pid, spawn(command, options.process, {in.read, out.write, err.write}));
  in.close_read(), out.close_write(), err.close_write();
  RunOutput result;
  std::string_view input = options.input;
  if (input.empty())
    in.close_write();
  else
    ::fcntl(in.write, F_SETFL, O_NONBLOCK);
  ::signal(SIGPIPE, SIG_IGN);  // a child that does not read its input must not end us

  std::optional<Error> failed;
  while ((out.read >= 0 || err.read >= 0) && !failed) {
    pollfd fds[3] = {{out.read, POLLIN, 0}, {err.read, POLLIN, 0}, {in.write, POLLOUT, 0}};
    const int ready = ::poll(fds, 3, static_cast<int>(options.deadline.remaining_ms()));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0 || options.deadline.expired()) {
      failed = make_error(ErrorCode::kDeadline, "{} did not end in time", command[0]);
      break;
    }
    const auto drain = [&](Pipe& pipe, std::string& text) {
      char buffer[65536];
      const ssize_t n = ::read(pipe.read, buffer, sizeof buffer);
      if (n > 0) text.append(buffer, static_cast<size_t>(n));
      if (n == 0 || (n < 0 && errno != EINTR)) pipe.close_read();
      if (text.size() > options.max_output_bytes) {
        failed = make_error(ErrorCode::kFull, "{} printed more than {} bytes", command[0],
                            options.max_output_bytes);
      }
    };
    if (fds[0].revents != 0) drain(out, result.stdout_text);
    if (fds[1].revents != 0) drain(err, result.stderr_text);
    if (fds[2].revents != 0) {
      const ssize_t n = ::write(in.write, input.data(), input.size());
      if (n > 0) input.remove_prefix(static_cast<size_t>(n));
      if (input.empty() || (n < 0 && errno != EAGAIN && errno != EINTR)) in.close_write();
    }
  }
  int status = 0;
  if (failed) ::kill(pid, SIGKILL);
  // Its output is closed; it may still run on until the deadline.
  for (;;) {
    const pid_t got = ::waitpid(pid, &status, failed ? 0 : WNOHANG);
    if (got == pid || (got < 0 && errno != EINTR)) break;
    if (options.deadline.expired() && !failed) {
      failed = make_error(ErrorCode::kDeadline, "{} did not end in time", command[0]);
      ::kill(pid, SIGKILL);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (failed) return *failed;
  result.exit_code = decode(status).exit_code;
  return result;
}

}  // namespace flywheel
