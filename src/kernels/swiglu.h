// y = silu(gate) * up, silu(x) = x / (1 + exp(-x))      (SwiGLU, Shazeer 2020), and its gradient.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace flywheel::kernels {

// y may be gate or up.
void swiglu(float* y, const float* gate, const float* up, int64_t n, ThreadPool& pool);
// dgate may be gate or dy, dup may be up or dy.
void swiglu_backward(float* dgate, float* dup, const float* dy, const float* gate, const float* up, int64_t n,
                     ThreadPool& pool);

}  // namespace flywheel::kernels
