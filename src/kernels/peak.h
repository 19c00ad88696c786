// What this machine can do at most, measured: the limits that benchmarks and progress bars divide by.
//
//   double share = flop / seconds / peak_flops(DType::kBF16, compute_pool());
#pragma once

#include "base/thread_pool.h"
#include "kernels/dtype.h"

namespace flywheel::kernels {

// Floating-point operations a second of multiply-adds from registers on all threads of the pool, in the
// compute mode that a weight of `dtype` (f32 or bf16) has.
//
// Each thread counts what it does in a second of its own processor time, which does not pass while others
// have its core; the sum over the threads is what they can do where nobody else is. They multiply at the same
// time, so threads that share the units of a core (hyperthreads) count for what they get of them. Threads
// beyond the processors that this process may use, or beyond its quota of their time, add nothing
// (usable_core_seconds()). What a hypervisor takes away counts as a thread's own time: there the value
// is too low. Takes about 50 ms; where others leave threads little time, as long as each needs for 3 ms of
// it.
double peak_flops(DType dtype, ThreadPool& pool);

// Bytes a second that all threads together read from memory: the most of many short turns, as the memory is
// shared with whatever else runs, and processor time does not tell who had it. Takes 100 to 200 ms and 256
// MB.
double peak_read_bytes_per_second(ThreadPool& pool);

}  // namespace flywheel::kernels
