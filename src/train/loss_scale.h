// The loss scale of fp16 training: gradients are multiplied by it so that the small ones are not lost, and a
// step whose gradients overflow is skipped and lowers it (Micikevicius et al. 2018; the rules and their names
// are DeepSpeed's).
//
//   overflow: where hysteresis is used up, scale = max(scale / 2, min_scale), at min_scale an error; else
//             hysteresis goes down by one
//   clean:    after every `window` clean steps scale *= 2 and hysteresis is filled up;
//             consecutive_hysteresis fills it up at every clean step
//
// A LossScale is plain data: a step gives the next one. With `dynamic` false the scale stays.
//
//   LossScale scale = first_loss_scale(config);
//   ASSIGN_OR_RETURN(scale, next_loss_scale(config, scale, overflow));
#pragma once

#include <cstdint>

#include "base/config.h"
#include "base/result.h"

namespace flywheel::train {

struct LossScaleConfig {
  double fixed = 0;  // 0: dynamic
  int64_t initial_power = 16;
  int64_t window = 1000;
  int64_t hysteresis = 2;
  bool consecutive_hysteresis = false;
  double min_scale = 1;
  template <typename V>
  void fields(V& v) {
    v("fixed", fixed), v("initial_power", initial_power), v("window", window), v("hysteresis", hysteresis);
    v("consecutive_hysteresis", consecutive_hysteresis), v("min_scale", min_scale);
  }
};

struct LossScale {
  double scale = 1;
  int64_t hysteresis = 1;      // overflows until the scale goes down
  int64_t step = 0;            // of training, skipped ones too
  int64_t last_overflow = -1;  // its step
  friend bool operator==(const LossScale&, const LossScale&) = default;
};

// UserError naming the key below `loss_scale`.
void check(const LossScaleConfig& config);

LossScale first_loss_scale(const LossScaleConfig& config);
// kInvalid where an overflow finds the scale at its least.
Result<LossScale> next_loss_scale(const LossScaleConfig& config, const LossScale& now, bool overflow);

}  // namespace flywheel::train
