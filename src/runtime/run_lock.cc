#include "runtime/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <thread>

#include "base/deadline.h"
#include "base/file.h"
#include "base/posix.h"

namespace flywheel::runtime {
namespace {

std::string lock_path(const std::string& folder) {
  return folder + "/controller.lock";
}

bool take(int fd, int64_t patience_ms) {
  for (const Deadline patience = Deadline::after_ms(patience_ms); ::flock(fd, LOCK_EX | LOCK_NB) != 0;) {
    if (patience.expired()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

}  // namespace

Result<int> lock_run(const std::string& folder, const std::string& run) {
  RETURN_IF_ERROR(make_folders(folder));
  const std::string path = lock_path(folder);
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return system_error("cannot open", path);
  if (take(fd, 3000)) return fd;
  ::close(fd);
  return make_error(ErrorCode::kUnavailable, "run {} is in the hands of another controller ({} is locked)",
                    run, path);
}

bool run_is_locked(const std::string& folder, int64_t patience_ms) {
  const int fd = ::open(lock_path(folder).c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return false;
  const bool free = take(fd, patience_ms);
  ::close(fd);
  return !free;
}

}  // namespace flywheel::runtime
