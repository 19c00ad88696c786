#include "kernels/cross_entropy.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/scratch_internal.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {
namespace {

// Logits that exist at once: 64 MB. Each chunk reads the weight and reads and writes its gradient once more.
constexpr int64_t kLogitsAtOnce = 16 << 20;

}  // namespace

float log_sum_exp(const float* logits_V, int64_t V) {
  return table().log_sum_exp(logits_V, V);
}

double linear_cross_entropy(float* logprob_M, const float* x_MD, const PackedWeight& weight,
                            const int32_t* targets_M, int64_t M, const CrossEntropyGradient* gradient,
                            ThreadPool& pool) {
  const Table& kernels = table();
  const int64_t V = weight.rows(), D = weight.columns();
  const int64_t chunk = std::clamp<int64_t>(kLogitsAtOnce / V / 16 * 16, 16, 1024);
  auto* logits = scratch<float>(Scratch::kLogits, std::min(chunk, M) * V);
  double loss = 0;
  for (int64_t m = 0; m < M; m += chunk) {
    const int64_t rows = std::min(chunk, M - m);
    const int32_t* targets = targets_M + m;
    linear(logits, x_MD + m * D, weight, rows, pool);
    loss += pool.parallel_sum(rows, 1, [&](int64_t r, int64_t) {
      float* row = logits + r * V;
      const bool valid = targets[r] != kIgnoredTarget;
      CHECK(!valid || (targets[r] >= 0 && targets[r] < V), "target {} of a vocabulary of {}", targets[r], V);
      float logprob = 0;
      if (valid) {
        const float lse = kernels.log_sum_exp(row, V);
        logprob = row[targets[r]] - lse;
        if (gradient != nullptr) {
          kernels.softmax_scaled(row, lse, gradient->scale, V);
          row[targets[r]] -= gradient->scale;
        }
      } else if (gradient != nullptr) {
        std::fill_n(row, V, 0.0f);
      }
      if (logprob_M != nullptr) logprob_M[m + r] = logprob;
      return -static_cast<double>(logprob);
    });
    if (gradient == nullptr) continue;
    linear(gradient->dx_MD + m * D, logits, *gradient->weight_transposed, rows, pool);
    if (gradient->dw_VD != nullptr) {
      linear_backward_weight(gradient->dw_VD, logits, x_MD + m * D, weight.dtype(), rows, V, D, pool);
    }
  }
  return loss;
}

}  // namespace flywheel::kernels
