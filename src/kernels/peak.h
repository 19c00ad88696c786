// What this machine can do at most, measured: the limits that benchmarks and progress bars divide by.
//
//   double share = flop / seconds / peak_flops(DType::kBF16, compute_pool());
#pragma once

#include "base/thread_pool.h"
#include "kernels/dtype.h"

namespace flywheel::kernels {

// Floating-point operations a second of multiply-adds from registers on all threads of the pool, in the
// compute mode that a weight of `dtype` (f32 or bf16) has. Takes about 50 ms.
double peak_flops(DType dtype, ThreadPool& pool);

// Bytes a second that all threads together read from memory. Takes about 100 ms and 256 MB.
double peak_read_bytes_per_second(ThreadPool& pool);

}  // namespace flywheel::kernels
