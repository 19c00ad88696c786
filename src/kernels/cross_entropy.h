// log-softmax of logits, and linear + cross-entropy in chunks of rows: the logits of a batch never exist at
// once.
//
// log_sum_exp() is what engine and trainer share: logprob(id) = logits[id] - log_sum_exp(logits), so the same
// logits give the same log-probability bit for bit on both sides.
//
//   float lse = log_sum_exp(logits, V);  float logprob = logits[id] - lse;
//   CrossEntropyGradient gradient{.weight_transposed = &wt, .scale = 1.0f / valid, .dx_MD = dx, .dw_VD = dw};
//   double loss = linear_cross_entropy(logprob_M, x, weight, targets, M, &gradient, pool);  // sum over valid
//   rows
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/linear.h"

namespace flywheel::kernels {

inline constexpr int32_t kIgnoredTarget = -100;

float log_sum_exp(const float* logits_V, int64_t V);

// What the backward half needs and gives. dx is written; dw is added to.
struct CrossEntropyGradient {
  const PackedWeight* weight_transposed;  // pack_transposed() of the same weight
  float scale;                            // d(final loss) / d(sum of row losses)
  float* dx_MD;
  float* dw_VD;  // null: the weight is frozen
};

// Sum over rows whose target is not kIgnoredTarget of -log softmax(x W^T)[target]; targets in [0, V).
// logprob_M, if not null, gets each valid row's log-probability (0 where ignored). gradient: null to
// evaluate.
double linear_cross_entropy(float* logprob_M, const float* x_MD, const PackedWeight& weight,
                            const int32_t* targets_M, int64_t M, const CrossEntropyGradient* gradient,
                            ThreadPool& pool);

}  // namespace flywheel::kernels
