// y_TD[t][d] = x_TD[t][d] / sqrt(mean_d(x^2) + epsilon) * weight_D[d]      (RMSNorm, Zhang & Sennrich 2019)
//
// A row's result does not depend on T. Per-head q/k norms are the same with T = tokens * heads, D = head_dim.
//
//   rms_norm(y, x, weight, T, D, 1e-5f, pool);
//   rms_norm_backward(dx, dweight, dy, x, weight, T, D, 1e-5f, pool);
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace flywheel::kernels {

// x and y may be the same.
void rms_norm(float* y_TD, const float* x_TD, const float* weight_D, int64_t T, int64_t D, float epsilon,
              ThreadPool& pool);

// dx is written (and may be dy); dweight is added to, in an order that does not depend on the threads.
void rms_norm_backward(float* dx_TD, float* dweight_D, const float* dy_TD, const float* x_TD,
                       const float* weight_D, int64_t T, int64_t D, float epsilon, ThreadPool& pool);

}  // namespace flywheel::kernels
