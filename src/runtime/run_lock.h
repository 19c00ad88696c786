// One controller at a time has a run: a lock in the run's folder that the kernel drops when its holder dies.
//
// Errors: kUnavailable when another controller has the run, kIo when the folder cannot be written.
//
//   ASSIGN_OR_RETURN(const int lock, lock_run(folder, "tiny-7"));   // closing it gives the run back
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace flywheel::runtime {

// A descriptor that holds the lock. A controller that was killed a moment ago may still be on its way out:
// waits a few seconds for that.
Result<int> lock_run(const std::string& folder, const std::string& run);

// Whether some controller has the run and keeps it for as long as `patience_ms`.
bool run_is_locked(const std::string& folder, int64_t patience_ms);

}  // namespace flywheel::runtime
