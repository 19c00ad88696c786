// The learning rate as a pure function of the step.
//
// `update` counts the updates made before this one, from 0; a step skipped for overflow is not one. The kinds
// that DeepSpeed has are the same functions of the same parameters there, so a configuration carried over
// trains alike: its schedulers take their first step after the first update, which is why they still give
// their starting value at update 1.
//
//   cosine         linear from 0 over optimizer.warmup_steps to optimizer.lr, then a cosine to
//   optimizer.min_lr constant       the same warm-up, then optimizer.lr wsd            the same warm-up,
//   optimizer.lr, and in the last decay_steps down to optimizer.min_lr, along a
//                  line or 1 - sqrt (Hägele et al. 2024)
//   warmup         WarmupLR: from warmup.min_lr to max_lr over num_steps along a logarithm or a line, then
//   max_lr warmup_decay   WarmupDecayLR: then down a line to 0 at total_steps warmup_cosine  WarmupCosineLR:
//   the same as shares of optimizer.lr, then a cosine to cos_min_ratio lr_range_test  LRRangeTest: up from
//   min_lr for ever, to see where training breaks (Smith 2018) one_cycle      OneCycle: up, down and further
//   down, the momentum the other way round (Smith 2018)
//
//   double lr = scheduled_lr(schedule, {.lr = 1e-3, .min_lr = 1e-4, .warmup_steps = 20}, update, steps);
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "base/config.h"

namespace flywheel::train {

enum class ScheduleType {
  kCosine,
  kConstant,
  kWsd,
  kWarmup,
  kWarmupDecay,
  kWarmupCosine,
  kRangeTest,
  kOneCycle
};
enum class WarmupShape { kLog, kLinear };
enum class DecayShape { kLinear, kSqrt };

// Of warmup, warmup_decay and warmup_cosine, in DeepSpeed's names without their prefix.
struct WarmupConfig {
  double min_lr = 0;
  double max_lr = 0;  // 0: optimizer.lr
  int64_t num_steps = 1000;
  WarmupShape type = WarmupShape::kLog;
  int64_t total_steps = 0;      // 0: the run's
  double min_ratio = 0;         // warmup_cosine's start, as a share of optimizer.lr
  double cos_min_ratio = 1e-4;  // and its end
  template <typename V>
  void fields(V& v) {
    v("min_lr", min_lr), v("max_lr", max_lr), v("num_steps", num_steps), v("type", type);
    v("total_steps", total_steps), v("min_ratio", min_ratio), v("cos_min_ratio", cos_min_ratio);
  }
};

struct RangeTestConfig {
  double min_lr = 1e-3;
  int64_t step_size = 2000;
  double step_rate = 1;
  bool staircase = false;
  template <typename V>
  void fields(V& v) {
    v("min_lr", min_lr), v("step_size", step_size), v("step_rate", step_rate), v("staircase", staircase);
  }
};

struct OneCycleConfig {
  double min_lr = 1e-4, max_lr = 1e-3;
  double decay_lr_rate = 0;
  int64_t first_step_size = 2000;
  std::optional<int64_t> second_step_size;  // first_step_size
  int64_t first_stair_count = 0;            // 0: no stairs
  std::optional<int64_t> second_stair_count;
  int64_t decay_step_size = 0;  // 0: no decay after the cycle
  bool cycle_momentum = true;   // beta1 goes from max to min and back
  double min_momentum = 0.8, max_momentum = 0.9;
  double decay_momentum_rate = 0;
  template <typename V>
  void fields(V& v) {
    v("min_lr", min_lr), v("max_lr", max_lr), v("decay_lr_rate", decay_lr_rate);
    v("first_step_size", first_step_size), v("second_step_size", second_step_size);
    v("first_stair_count", first_stair_count), v("second_stair_count", second_stair_count);
    v("decay_step_size", decay_step_size), v("cycle_momentum", cycle_momentum);
    v("min_momentum", min_momentum), v("max_momentum", max_momentum);
    v("decay_momentum_rate", decay_momentum_rate);
  }
};

struct ScheduleConfig {
  ScheduleType type = ScheduleType::kCosine;
  int64_t decay_steps = 0;  // wsd; 0: a tenth of the run
  DecayShape decay = DecayShape::kLinear;
  WarmupConfig warmup;
  RangeTestConfig range_test;
  OneCycleConfig one_cycle;
  template <typename V>
  void fields(V& v) {
    v("type", type), v("decay_steps", decay_steps), v("decay", decay), v("warmup", warmup);
    v("range_test", range_test), v("one_cycle", one_cycle);
  }
};

// What `optimizer` says of the learning rate.
struct LrRange {
  double lr = 1e-3, min_lr = 0;
  int64_t warmup_steps = 0;
};

// UserError naming the key below `schedule`.
void check(const ScheduleConfig& config);

double scheduled_lr(const ScheduleConfig& config, const LrRange& range, int64_t update, int64_t steps);

// beta1 and beta2 where the schedule sets them: one_cycle with cycle_momentum.
std::optional<std::array<double, 2>> scheduled_betas(const ScheduleConfig& config, int64_t update);

}  // namespace flywheel::train

template <>
struct flywheel::ConfigEnum<flywheel::train::ScheduleType> {
  using T = flywheel::train::ScheduleType;
  static constexpr std::array<std::pair<const char*, T>, 8> names{{{"cosine", T::kCosine},
                                                                   {"constant", T::kConstant},
                                                                   {"wsd", T::kWsd},
                                                                   {"warmup", T::kWarmup},
                                                                   {"warmup_decay", T::kWarmupDecay},
                                                                   {"warmup_cosine", T::kWarmupCosine},
                                                                   {"lr_range_test", T::kRangeTest},
                                                                   {"one_cycle", T::kOneCycle}}};
};
template <>
struct flywheel::ConfigEnum<flywheel::train::WarmupShape> {
  using T = flywheel::train::WarmupShape;
  static constexpr std::array<std::pair<const char*, T>, 2> names{{{"log", T::kLog}, {"linear", T::kLinear}}};
};
template <>
struct flywheel::ConfigEnum<flywheel::train::DecayShape> {
  using T = flywheel::train::DecayShape;
  static constexpr std::array<std::pair<const char*, T>, 2> names{
      {{"linear", T::kLinear}, {"sqrt", T::kSqrt}}};
};
