#include "runtime/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>

#include "base/env.h"
#include "base/log.h"
#include "runtime/modules.h"
#include "runtime/wire.h"

namespace flywheel::runtime {
namespace {

constexpr const char* kOwnerVariable = "FLYWHEEL_OWNER";  // "7 tiny-7/train/1/tools": descriptor and path
constexpr size_t kReportBytes = 4096;
constexpr int kReportsAtOnce = 64;  // of one child: the others get their turn
constexpr int64_t kEndMs = 10'000;  // for a keeper to clear up

struct Owner {
  int socket = -1;
  std::string path;
};

const Owner& owner() {
  static const Owner found = [] {
    const std::string text = env::get(kOwnerVariable);
    const size_t space = text.find(' ');
    if (space == std::string::npos) return Owner{};
    Owner owner{static_cast<int>(std::strtol(text.c_str(), nullptr, 10)), text.substr(space + 1)};
    if (::fcntl(owner.socket, F_SETFD, FD_CLOEXEC) != 0) owner.socket = -1;  // ours; not our children's
    return owner;
  }();
  return found;
}

Result<std::string> keeper() {
  const auto found = find_modules("flywheel_keeper");
  if (found.empty())
    return make_error(ErrorCode::kNotFound,
                      "flywheel_keeper is neither beside the program nor in ../lib/flywheel");
  return found.front();
}

}  // namespace

std::string how_it_ended(const ExitStatus& status) {
  return status.signal != 0 ? fmt::format("killed by signal {}", status.signal)
                            : fmt::format("exited with {}", status.exit_code);
}

std::string Failure::to_string() const {
  static constexpr std::array<const char*, 3> kAnswers = {"given up", "started again",
                                                          "its owner fails with it"};
  return fmt::format("{}: {}; {}", who, cause, kAnswers.at(static_cast<size_t>(answer)));
}

std::string path_in_tree() {
  return owner().path;
}

void report_to_owner(const Failure& failure) {
  if (owner().socket < 0) return;
  Failure brief = failure;
  brief.cause.resize(std::min<size_t>(brief.cause.size(), 1000));
  const std::string bytes = encode(brief);
  [[maybe_unused]] const ssize_t n =
      ::send(owner().socket, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

struct Supervisor::Child {
  std::string name, path;
  ChildSpec spec;
  Process process;
  int exit_fd = -1, socket = -1;
  bool running = false, stopping = false;
  std::optional<ExitStatus> ended;
  int restarts = 0;
  std::deque<Stopwatch> failed_at;

  void hang_up() {
    if (socket >= 0) ::close(socket);
    socket = -1;
  }
  // Before it is reaped, so that the number is still its own.
  void kill_group() const { ::kill(-process.pid(), SIGKILL); }
  void forget() {
    hang_up();
    if (exit_fd >= 0) ::close(exit_fd);
    exit_fd = -1;
  }
};

Supervisor::Supervisor(std::string path, Report report)
    : path_(std::move(path)),
      report_(report ? std::move(report) : Report(report_to_owner)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      watcher_([this] { watch(); }) {}

Supervisor::~Supervisor() {
  stop_all();
  {
    std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  poke();
  watcher_.join();
  if (wake_ >= 0) ::close(wake_);
}

void Supervisor::poke() const {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_, &one, sizeof one);
}

Result<void> Supervisor::launch(Child& child) {
  CHECK(!child.spec.command.empty(), "child {} without a command", child.path);
  ASSIGN_OR_RETURN(const std::string program, keeper());
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return make_error(ErrorCode::kIo, "socketpair: {}", std::strerror(errno));
  const std::string number = std::to_string(pair[1]);
  std::vector<std::string> command{program, number};
  command.insert(command.end(), child.spec.command.begin(), child.spec.command.end());
  if (command[2] == "/proc/self/exe") command[2] = this_program();
  ProcessOptions options{.env = child.spec.env,
                         .folder = child.spec.folder,
                         .output_file = child.spec.output_file,
                         .keep_fds = {pair[1]},
                         .new_group = true,
                         .die_with_parent = false};  // it has to clear up first
  options.env[kOwnerVariable] = number + " " + child.path;
  auto started = Process::start(command, options);
  ::close(pair[1]);
  if (!started.ok()) {
    ::close(pair[0]);
    return started.error();
  }
  child.process = std::move(started).value();
  child.socket = pair[0];
  child.exit_fd = static_cast<int>(::syscall(SYS_pidfd_open, child.process.pid(), 0));
  child.running = true;
  child.ended.reset();
  return {};
}

Result<pid_t> Supervisor::start(const std::string& name, const ChildSpec& spec) {
  std::scoped_lock lock(mutex_);
  auto& child = children_[name];
  if (child != nullptr && child->running) {
    if (child->spec == spec) return child->process.pid();
    return make_error(ErrorCode::kInvalid, "{} runs already, as something else", child->path);
  }
  child = std::make_unique<Child>();
  child->name = name;
  child->path = path_.empty() ? name : path_ + "/" + name;
  child->spec = spec;
  if (auto launched = launch(*child); !launched.ok()) {
    const std::string path = child->path;
    children_.erase(name);
    return make_error(launched.error().code, "{} cannot be started: {}", path, launched.error().message);
  }
  poke();
  return child->process.pid();
}

Result<ExitStatus> Supervisor::stop(const std::string& name, int64_t grace_ms) {
  {
    std::scoped_lock lock(mutex_);
    const auto found = children_.find(name);
    if (found == children_.end()) return make_error(ErrorCode::kNotFound, "{} has no child {}", path_, name);
    Child& child = *found->second;
    child.stopping = true;
    if (child.running && grace_ms > 0) child.process.signal(SIGTERM);
  }
  if (grace_ms > 0) {
    if (auto ended = wait(name, Deadline::after_ms(grace_ms)); ended.ok()) return ended;
  }
  {
    std::scoped_lock lock(mutex_);
    if (const auto found = children_.find(name); found != children_.end()) found->second->hang_up();
  }
  if (auto ended = wait(name, Deadline::after_ms(kEndMs)); ended.ok()) return ended;
  {
    std::scoped_lock lock(mutex_);
    if (const auto found = children_.find(name); found != children_.end() && found->second->running)
      found->second->kill_group();
  }
  return wait(name, Deadline::after_ms(kEndMs));
}

void Supervisor::stop_all() {
  std::vector<std::string> names;
  {
    std::scoped_lock lock(mutex_);
    for (const auto& [name, child] : children_) {
      child->stopping = true;
      child->hang_up();  // all at once
      names.push_back(name);
    }
  }
  for (const auto& name : names) {
    (void)stop(name, 0);
    std::scoped_lock lock(mutex_);
    children_.erase(name);
  }
}

Result<ExitStatus> Supervisor::wait(const std::string& name, Deadline deadline) {
  std::unique_lock lock(mutex_);
  for (;;) {
    const auto found = children_.find(name);
    if (found == children_.end()) return make_error(ErrorCode::kNotFound, "{} has no child {}", path_, name);
    if (!found->second->running && found->second->ended) return *found->second->ended;
    if (deadline.expired()) return make_error(ErrorCode::kDeadline, "{} still runs", found->second->path);
    changed_.wait_for(lock, std::chrono::milliseconds(std::min<int64_t>(deadline.remaining_ms() + 1, 100)));
  }
}

std::vector<ChildStatus> Supervisor::children() const {
  std::scoped_lock lock(mutex_);
  std::vector<ChildStatus> all;
  for (const auto& [name, child] : children_)
    all.push_back({name, child->running ? child->process.pid() : 0, child->restarts, child->ended});
  return all;
}

void Supervisor::watch() {
  for (;;) {
    std::vector<pollfd> items{{wake_, POLLIN, 0}};
    {
      std::scoped_lock lock(mutex_);
      if (stop_) return;
      for (const auto& [name, child] : children_) {
        if (!child->running) continue;
        items.push_back({child->exit_fd, POLLIN, 0});
        if (child->socket >= 0) items.push_back({child->socket, POLLIN, 0});
      }
    }
    // Without descriptors left there was none to wake it by.
    ::poll(items.data(), items.size(), items.size() > 1 || wake_ < 0 ? 200 : -1);
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t n = ::read(wake_, &count, sizeof count);
    std::vector<Failure> failures;
    {
      std::scoped_lock lock(mutex_);
      for (const auto& [name, child] : children_) {
        read_reports(*child, failures);
        look_after(*child, failures);
      }
    }
    for (const auto& failure : failures) {
      LOG_WARN("{}", failure.to_string());
      report_(failure);
    }
  }
}

// What the child's own Supervisors and Controllers say. It speaks for its subtree only.
void Supervisor::read_reports(Child& child, std::vector<Failure>& failures) {
  std::array<char, kReportBytes> bytes{};
  for (int i = 0; i < kReportsAtOnce && child.socket >= 0; ++i) {
    const ssize_t n = ::recv(child.socket, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (n <= 0) return;
    auto failure = decode<Failure>({bytes.data(), static_cast<size_t>(n)});
    if (failure.ok() && failure->who.starts_with(child.path + "/") && failure->answer <= OnFailure::kEscalate)
      failures.push_back(std::move(failure).value());
  }
}

void Supervisor::look_after(Child& child, std::vector<Failure>& failures) {
  if (!child.running) return;
  pollfd exit{child.exit_fd, POLLIN, 0};
  if (child.exit_fd >= 0 && ::poll(&exit, 1, 0) != 1) return;
  if (child.exit_fd >= 0) child.kill_group();  // the keeper may have been killed itself
  const auto status = child.process.wait(Deadline::after_ms(0));
  if (!status.ok()) return;
  child.forget();
  child.running = false;
  child.ended = *status;
  changed_.notify_all();
  if (child.stopping || (status->signal == 0 && status->exit_code == 0)) return;
  Failure failure{child.path, how_it_ended(*status), child.spec.on_failure};
  if (child.spec.on_failure == OnFailure::kRestart) {
    const double within = static_cast<double>(child.spec.within_ms) / 1000;
    while (!child.failed_at.empty() && child.failed_at.front().seconds() > within)
      child.failed_at.pop_front();
    if (std::ssize(child.failed_at) >= child.spec.max_restarts) {
      failure.answer = OnFailure::kGiveUp;
      failure.cause += fmt::format(", after {} restarts in {} s", child.failed_at.size(), within);
    } else if (auto launched = launch(child); !launched.ok()) {
      failure.answer = OnFailure::kGiveUp;
      failure.cause += "; " + launched.error().message;
    } else {
      child.failed_at.emplace_back();
      ++child.restarts;
    }
  }
  failures.push_back(std::move(failure));
}

}  // namespace flywheel::runtime
