// One controller at a time has a run: a FileLock in the run's folder.
//
// Errors: kUnavailable when another controller has the run, kIo when the folder cannot be written.
//
//   ASSIGN_OR_RETURN(const FileLock lock, lock_run(folder, "tiny-7"));
#pragma once

#include <cstdint>
#include <string>

#include "base/file_lock.h"
#include "base/result.h"

namespace flywheel::runtime {

// A controller that was killed a moment ago may still be on its way out: waits a few seconds for that.
Result<FileLock> lock_run(const std::string& folder, const std::string& run);

// Whether some controller has the run and keeps it for as long as `patience_ms`.
bool run_is_locked(const std::string& folder, int64_t patience_ms);

}  // namespace flywheel::runtime
