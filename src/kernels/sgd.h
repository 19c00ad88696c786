// Stochastic gradient descent with momentum (Polyak 1964; Nesterov's form as in Sutskever et al. 2013), over
// flat buffers.
//
//   g      = gradient * gradient_scale + l2 * w
//   buffer = momentum * buffer + (1 - dampening) * g      (the first step: buffer = g)
//   w      = w * (1 - lr * weight_decay) - lr * (nesterov ? g + momentum * buffer : buffer)
//
//   sgd(weights, buffer, gradients, n, {.lr = 0.1f, .momentum = 0.9f}, pool);
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace flywheel::kernels {

struct SgdStep {
  float lr;
  float momentum = 0.0f, dampening = 0.0f;
  bool nesterov = false;
  float weight_decay = 0.0f, l2 = 0.0f;  // decoupled, or added to the gradient
  int64_t t = 1;                         // number of this step, from 1
  float gradient_scale = 1.0f;
};

// `buffer` may be null where momentum is 0.
void sgd(float* weights, float* buffer, const float* gradients, int64_t n, const SgdStep& step,
         ThreadPool& pool);

}  // namespace flywheel::kernels
