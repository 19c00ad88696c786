#include "base/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string_view>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/posix.h"

namespace flywheel {
namespace fs = std::filesystem;
namespace {

// "shard.tokens.tmp.4711.0": the name that AtomicFile::create gives, of any process.
bool is_temporary(std::string_view name) {
  constexpr std::string_view kDigits = "0123456789", kMark = ".tmp";
  for (int number = 0; number < 2; ++number) {
    const size_t last = name.find_last_not_of(kDigits);
    if (last == std::string_view::npos || last + 1 == name.size() || name[last] != '.') return false;
    name = name.substr(0, last);
  }
  return name.ends_with(kMark);
}

}  // namespace

Result<int64_t> remove_unfinished(const std::string& folder) {
  std::error_code error;
  std::vector<fs::path> found;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->is_regular_file(error) && is_temporary(it->path().filename().string()))
      found.push_back(it->path());
  }
  for (const fs::path& path : found) {
    if (!error) fs::remove(path, error);
  }
  if (error) return system_error("cannot clear up in", folder, error.value());
  return static_cast<int64_t>(found.size());
}

Result<FileLock> FileLock::take(const std::string& path, Deadline patience) {
  RETURN_IF_ERROR(make_folders(fs::path(path).parent_path().string()));
  FileLock lock;
  lock.fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock.fd_ < 0) return system_error("cannot open", path);
  while (::flock(lock.fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return system_error("cannot lock", path);
    if (patience.expired()) return make_error(ErrorCode::kDeadline, "{} is locked by another process", path);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return lock;
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

}  // namespace flywheel
