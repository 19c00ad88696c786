// Lion (Chen et al. 2023): the sign of an interpolated momentum, one moment per weight, over flat buffers.
//
//   w = w * (1 - lr * weight_decay) - lr * sign(beta1 * m + (1 - beta1) * g)
//   m = beta2 * m + (1 - beta2) * g
//
//   lion(weights, m, gradients, n, {.lr = 1e-4f, .weight_decay = 0.1f}, pool);
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace flywheel::kernels {

struct LionStep {
  float lr;
  float beta1 = 0.9f, beta2 = 0.99f, weight_decay = 0.0f;
  float gradient_scale = 1.0f;  // multiplies each gradient first
};

void lion(float* weights, float* m, const float* gradients, int64_t n, const LionStep& step,
          ThreadPool& pool);

}  // namespace flywheel::kernels
