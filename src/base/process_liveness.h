// Whether a process that was written down somewhere (a run's owner, a lock's holder) still lives.
//
// Errors: none; what cannot be looked at counts as living.
//
//   if (!process_lives(info.pid, info.heartbeat_ms)) take_over();
#pragma once

#include <cstdint>

namespace flywheel {

// Whether process `pid` of this machine lives and was there at `wall_ms` (since 1970): a later process of the
// same number is another one, and what has ended but was not waited for is dead.
bool process_lives(int64_t pid, int64_t wall_ms);

// Whether it is held by a signal (SIGSTOP, a debugger) and does nothing.
bool process_is_stopped(int64_t pid);

}  // namespace flywheel
