#include "kernels/adamw.h"

#include <cmath>

#include "base/check.h"
#include "kernels/elementwise_internal.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {

AdamWTerms adamw_terms(const AdamWStep& s) {
  CHECK(s.t >= 1, "AdamW step {}: steps count from 1", s.t);
  const auto t = static_cast<double>(s.t);
  return {.gradient_scale = s.gradient_scale,
          .beta1 = s.beta1,
          .beta2 = s.beta2,
          .decay = 1.0f - s.lr * s.weight_decay,
          .step = static_cast<float>(s.lr / (1.0 - std::pow(static_cast<double>(s.beta1), t))),
          .root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(static_cast<double>(s.beta2), t))),
          .epsilon = s.epsilon,
          .l2 = s.l2};
}

void adamw(float* weights, float* m, float* v, const float* gradients, uint16_t* bf16, int64_t n,
           const AdamWStep& step, ThreadPool& pool) {
  const AdamWTerms terms = adamw_terms(step);
  const auto piece = table().adamw;
  pool.parallel_for(n, 16384, [&](int64_t b, int64_t e) {
    piece(weights + b, m + b, v + b, gradients + b, bf16 == nullptr ? nullptr : bf16 + b, e - b, terms);
  });
}

}  // namespace flywheel::kernels
