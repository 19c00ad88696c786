// One writer at a time: a lock among processes, and clearing up what a killed writer left.
//
// A lock lies on a file, which the kernel gives back when its holder ends, however it ends. The file stays.
// Errors: kDeadline when another holds it until then; kIo, kNotFound as in file.h.
//
//   ASSIGN_OR_RETURN(const FileLock lock, FileLock::take(folder + "/writer.lock", Deadline::after_ms(0)));
//   RETURN_IF_ERROR(remove_unfinished(folder));
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "base/deadline.h"
#include "base/result.h"

namespace flywheel {

class FileLock {
 public:
  // Makes missing parent folders.
  static Result<FileLock> take(const std::string& path, Deadline patience);
  FileLock() = default;
  ~FileLock();
  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&& other) noexcept;

 private:
  int fd_ = -1;
};

// Removes what AtomicFile left at and below `folder` when its process was killed, and says how many files
// that were. For a caller that alone writes there: a living writer's file would go too.
Result<int64_t> remove_unfinished(const std::string& folder);

}  // namespace flywheel
