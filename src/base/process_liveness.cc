#include "base/process_liveness.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <fstream>
#include <sstream>
#include <string>

namespace flywheel {
namespace {

int64_t now_ms(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

// "4711 (a name (with anything)) S ..." (proc(5)), from the third field, the state, on; "" without such a
// process.
std::string stat_from_state(int64_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string stat((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const size_t name_end = stat.rfind(')');
  return name_end == std::string::npos ? "" : stat.substr(std::min(name_end + 2, stat.size()));
}

}  // namespace

bool process_is_stopped(int64_t pid) {
  const std::string stat = stat_from_state(pid);
  return stat.starts_with("T ") || stat.starts_with("t ");
}

bool process_lives(int64_t pid, int64_t wall_ms) {
  if (pid <= 0) return false;
  if (::kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH) return false;
  // The start is the 22nd field, in ticks since the machine booted.
  std::istringstream fields(stat_from_state(pid));
  std::string state, skipped;
  int64_t start_ticks = 0;
  fields >> state;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  if (!(fields >> start_ticks)) return true;
  if (state == "Z" || state == "X") return false;
  const int64_t ran_ms = now_ms(CLOCK_BOOTTIME) - start_ticks * 1000 / ::sysconf(_SC_CLK_TCK);
  constexpr int64_t kTickMs = 20;  // the start is rounded
  return now_ms(CLOCK_REALTIME) - ran_ms <= wall_ms + kTickMs;
}

}  // namespace flywheel
