// Adafactor (Shazeer & Stern 2018): Adam's second moment of a matrix [N, K] kept as N row means and K column
// means, so that the state of a large matrix is nearly nothing. A vector keeps its whole second moment.
//
//   G = (g * gradient_scale)^2 + epsilon1          beta2 = 1 - t^decay_rate
//   R_N = beta2 R + (1 - beta2) mean_k G           C_K = beta2 C + (1 - beta2) mean_n G
//   u = g / sqrt(R C / mean(R)),  divided by max(1, rms(u) / clip_threshold)
//   w = w * (1 - lr * weight_decay) - rate * u
//   rate = (relative_step ? min(lr, 1 / sqrt(t)) : lr) * (scale_parameter ? max(epsilon2, rms(w)) : 1)
//
// Needs whole matrices: a row's mean and the norm of the update do not exist for a part of one.
// Sums are cut by size alone, so the result does not depend on the threads.
//
//   adafactor_matrix(w_NK, rows_N, columns_K, gradients, N, K, {.lr = 1e-2f, .t = 1}, pool);
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace flywheel::kernels {

struct AdafactorStep {
  float lr;
  float decay_rate = -0.8f, clip_threshold = 1.0f;
  float epsilon1 = 1e-30f, epsilon2 = 1e-3f;
  bool scale_parameter = true, relative_step = false;
  float beta1 = 0.0f;  // above 0: a first moment of the update, kept in `m`
  float weight_decay = 0.0f;
  int64_t t = 1;  // number of this step, from 1
  float gradient_scale = 1.0f;
};

// `m` (N * K values) may be null where beta1 is 0.
void adafactor_matrix(float* w_NK, float* rows_N, float* columns_K, float* m_NK, const float* gradients_NK,
                      int64_t N, int64_t K, const AdafactorStep& step, ThreadPool& pool);
void adafactor_vector(float* w, float* second, float* m, const float* gradients, int64_t n,
                      const AdafactorStep& step, ThreadPool& pool);

}  // namespace flywheel::kernels
