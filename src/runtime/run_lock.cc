#include "runtime/run_lock.h"

#include "base/deadline.h"
#include "base/file.h"

namespace flywheel::runtime {
namespace {

constexpr int64_t kDyingMs = 3000;

std::string lock_path(const std::string& folder) {
  return folder + "/controller.lock";
}

}  // namespace

Result<FileLock> lock_run(const std::string& folder, const std::string& run) {
  Result<FileLock> lock = FileLock::take(lock_path(folder), Deadline::after_ms(kDyingMs));
  if (lock.ok() || lock.error().code != ErrorCode::kDeadline) return lock;
  return make_error(ErrorCode::kUnavailable, "run {} is in the hands of another controller ({} is locked)",
                    run, lock_path(folder));
}

bool run_is_locked(const std::string& folder, int64_t patience_ms) {
  if (!path_exists(lock_path(folder))) return false;
  const Result<FileLock> lock = FileLock::take(lock_path(folder), Deadline::after_ms(patience_ms));
  return !lock.ok() && lock.error().code == ErrorCode::kDeadline;
}

}  // namespace flywheel::runtime
