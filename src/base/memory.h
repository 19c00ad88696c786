// How much memory there is to take.
//
// Threads: any. Errors: none; where the system says nothing, what it counts as free pages.
//
//   if (wanted_bytes > available_memory_bytes()) ...
#pragma once

namespace flywheel {

// Bytes that processes of this host may still take: free memory, the control group's limit, and this
// process's own (ulimit -v).
double available_memory_bytes();

}  // namespace flywheel
