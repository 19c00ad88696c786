// AdamW (Loshchilov & Hutter 2019) in one pass over flat buffers: f32 master weights, both moments, and the
// bf16 copy that the forward pass reads. With l2 instead of weight_decay it is Adam (Kingma & Ba 2015).
//
//   AdamWStep step{.lr = 3e-4f, .weight_decay = 0.1f, .t = 1};
//   adamw(weights, m, v, gradients, nullptr, n, step, pool);
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace flywheel::kernels {

struct AdamWStep {
  float lr;
  float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, weight_decay = 0.0f;
  int64_t t = 1;                // number of this step, from 1
  float gradient_scale = 1.0f;  // multiplies each gradient first: clipping, 1 / tokens
  float l2 = 0.0f;              // Adam's decay: l2 * weight is added to the scaled gradient
};

// weights, m and v change; bf16, if not null, gets the new weights rounded.
void adamw(float* weights, float* m, float* v, const float* gradients, uint16_t* bf16, int64_t n,
           const AdamWStep& step, ThreadPool& pool);

}  // namespace flywheel::kernels
