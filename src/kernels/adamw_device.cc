#include "kernels/adamw_device.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/elementwise_internal.h"

namespace flywheel::kernels {

std::vector<AdamWPiece> adamw_pieces(const std::vector<AdamWSegment>& segments) {
  std::vector<AdamWPiece> pieces;
  for (const auto& [begin, end, weight_decay] : segments) {
    CHECK(begin >= 0 && begin <= end, "a segment of weights from {} to {}", begin, end);
    for (int64_t at = begin; at < end; at += kAdamWPiece) {
      pieces.push_back({at, static_cast<int32_t>(std::min(kAdamWPiece, end - at)), weight_decay});
    }
  }
  return pieces;
}

StepTerms step_terms(const AdamWStep& step) {
  const AdamWTerms terms = adamw_terms(step);
  return {.beta1 = terms.beta1,
          .beta2 = terms.beta2,
          .lr = step.lr,
          .step = terms.step,
          .root = terms.root,
          .epsilon = terms.epsilon,
          .l2 = terms.l2};
}

}  // namespace flywheel::kernels
