// The keeper stands between an owner and its child (runtime/supervisor.h), and sees that nothing of the child
// is left when either of them ends.
//
//   flywheel_keeper SOCKET PROGRAM ARGUMENT...
//
// SOCKET is one end of a pair, the owner has the other: it hangs up when the owner ends, however that came,
// or when it wants the child to end. The keeper is a "child subreaper" (prctl(2)): what the child started and
// left behind, detached or not, becomes the keeper's own child and can be found and killed. SIGTERM is passed
// on. The keeper ends as the child did, with the same code or signal.
//
// A program of its own, without the rooms, so that it takes a few pages and a millisecond.
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

// Kills all that descends from here: children die, theirs become ours, until there are none.
void kill_all(pid_t child) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/children", ::getpid());
  for (;;) {
    if (FILE* children = std::fopen(path, "re")) {
      // NOLINTNEXTLINE(bugprone-unchecked-string-to-number-conversion): the kernel wrote it
      for (int pid = 0; std::fscanf(children, "%d", &pid) == 1;) ::kill(pid, SIGKILL);
      std::fclose(children);
    } else if (child > 0) {
      ::kill(child, SIGKILL);  // a kernel without that list: at least the child itself
    }
    if (::waitpid(-1, nullptr, 0) < 0 && errno == ECHILD) return;
  }
}

[[noreturn]] void end_as(int status) {
  if (!WIFSIGNALED(status)) ::_exit(WEXITSTATUS(status));
  const rlimit none{0, 0};  // the child's core is enough
  ::setrlimit(RLIMIT_CORE, &none);
  const int number = WTERMSIG(status);
  ::signal(number, SIG_DFL);
  sigset_t all;
  sigemptyset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  ::kill(::getpid(), number);
  ::_exit(128 + number);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: flywheel_keeper SOCKET PROGRAM ARGUMENT...\n");
    return 2;
  }
  const int owner = static_cast<int>(std::strtol(argv[1], nullptr, 10));
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  sigset_t watched, before;
  sigemptyset(&watched);
  sigaddset(&watched, SIGCHLD);
  sigaddset(&watched, SIGTERM);
  ::sigprocmask(SIG_BLOCK, &watched, &before);
  const int signals = ::signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // should the keeper be killed
    ::sigprocmask(SIG_SETMASK, &before, nullptr);
    ::execvp(argv[2], argv + 2);
    std::fprintf(stderr, "cannot start %s: %s\n", argv[2], std::strerror(errno));
    ::_exit(127);
  }
  if (child < 0) return 126;
  pollfd items[2] = {{owner, POLLIN | POLLRDHUP, 0}, {signals, POLLIN, 0}};
  for (;;) {
    if (::poll(items, 2, -1) < 0 && errno != EINTR) break;
    if (items[0].revents != 0) break;  // nothing is ever sent this way: the owner has hung up
    signalfd_siginfo info;
    while (::read(signals, &info, sizeof info) == sizeof info) {
      if (info.ssi_signo == SIGTERM) ::kill(child, SIGTERM);
    }
    int status = 0;
    for (pid_t ended; (ended = ::waitpid(-1, &status, WNOHANG)) > 0;) {
      if (ended != child) continue;
      kill_all(0);
      end_as(status);
    }
  }
  kill_all(child);
  return 128 + SIGKILL;
}
