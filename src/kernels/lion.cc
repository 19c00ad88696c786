#include "kernels/lion.h"

#include "kernels/optimizer_lanes_internal.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {

void lion(float* weights, float* m, const float* gradients, int64_t n, const LionStep& s, ThreadPool& pool) {
  const LionTerms terms{.gradient_scale = s.gradient_scale,
                        .beta1 = s.beta1,
                        .beta2 = s.beta2,
                        .decay = 1.0f - s.lr * s.weight_decay,
                        .lr = s.lr};
  const auto piece = table().lion;
  pool.parallel_for(n, 16384,
                    [&](int64_t b, int64_t e) { piece(weights + b, m + b, gradients + b, e - b, terms); });
}

}  // namespace flywheel::kernels
