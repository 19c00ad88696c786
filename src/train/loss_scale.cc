#include "train/loss_scale.h"

#include <algorithm>
#include <cmath>

namespace flywheel::train {

void check(const LossScaleConfig& c) {
  const auto require = [](bool holds, const char* key, const char* what) {
    if (!holds) throw UserError(key, what);
  };
  require(std::isfinite(c.fixed) && c.fixed >= 0, "loss_scale.fixed", "must be 0 (dynamic) or more");
  require(c.initial_power >= 0 && c.initial_power <= 64, "loss_scale.initial_power", "must be 0 to 64");
  require(c.window > 0, "loss_scale.window", "must be at least 1");
  require(c.hysteresis >= 1, "loss_scale.hysteresis", "must be at least 1");
  require(c.min_scale > 0, "loss_scale.min_scale", "must be above 0");
}

LossScale first_loss_scale(const LossScaleConfig& c) {
  const double scale = c.fixed > 0 ? c.fixed : std::exp2(static_cast<double>(c.initial_power));
  return {.scale = scale, .hysteresis = c.hysteresis};
}

Result<LossScale> next_loss_scale(const LossScaleConfig& c, const LossScale& now, bool overflow) {
  LossScale next = now;
  ++next.step;
  if (c.fixed > 0) return next;
  if (overflow) {
    next.last_overflow = now.step;
    if (c.hysteresis > 1 && now.hysteresis > 1) {
      --next.hysteresis;
    } else if (now.scale == c.min_scale) {
      return make_error(ErrorCode::kInvalid,
                        "gradients overflow fp16 even at the least loss scale, {}; lower optimizer.lr, or "
                        "train in bf16",
                        c.min_scale);
    } else {
      next.scale = std::max(now.scale / 2, c.min_scale);
    }
    return next;
  }
  if (c.consecutive_hysteresis) next.hysteresis = c.hysteresis;
  const int64_t stable = now.step - now.last_overflow - 1;
  if (stable > 0 && stable % c.window == 0) {
    next.hysteresis = c.hysteresis;
    next.scale = now.scale * 2;
  }
  return next;
}

}  // namespace flywheel::train
