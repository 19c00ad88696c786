#include "kernels/sgd.h"

#include "base/check.h"
#include "kernels/optimizer_lanes_internal.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {

void sgd(float* weights, float* buffer, const float* gradients, int64_t n, const SgdStep& s,
         ThreadPool& pool) {
  CHECK(s.t >= 1, "SGD step {}: steps count from 1", s.t);
  CHECK(buffer != nullptr || s.momentum == 0, "SGD with momentum needs a buffer");
  const SgdTerms terms{.gradient_scale = s.gradient_scale,
                       .l2 = s.l2,
                       .decay = 1.0f - s.lr * s.weight_decay,
                       .lr = s.lr,
                       .keep = s.t == 1 ? 0.0f : s.momentum,
                       .take = s.t == 1 ? 1.0f : 1.0f - s.dampening,
                       .ahead = s.nesterov ? s.momentum : 0.0f,
                       .nesterov = s.nesterov};
  const auto piece = table().sgd;
  float* used = s.momentum == 0 ? nullptr : buffer;
  pool.parallel_for(n, 16384, [&](int64_t b, int64_t e) {
    piece(weights + b, used == nullptr ? nullptr : used + b, gradients + b, e - b, terms);
  });
}

}  // namespace flywheel::kernels
