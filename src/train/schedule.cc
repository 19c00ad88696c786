#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace flywheel::train {
namespace {

double half_cosine(double share) {  // from 1 to 0
  return 0.5 * (1 + std::cos(std::numbers::pi * share));
}

// Share of the way up at step k < W.
double rise(const WarmupConfig& c, int64_t k, int64_t W) {
  if (c.type == WarmupShape::kLinear) return static_cast<double>(k) / static_cast<double>(W);
  return 1.0 / std::log(static_cast<double>(W)) * std::log(static_cast<double>(k + 1));
}

double cosine(const LrRange& r, int64_t update, int64_t steps) {
  const auto left = static_cast<double>(steps - 1 - r.warmup_steps);
  const double share = left <= 0 ? 1 : std::min(1.0, static_cast<double>(update - r.warmup_steps) / left);
  return r.min_lr + (r.lr - r.min_lr) * 0.5 * (1 + std::cos(std::numbers::pi * share));
}

double wsd(const ScheduleConfig& c, const LrRange& r, int64_t update, int64_t steps) {
  const int64_t decay = c.decay_steps > 0 ? c.decay_steps : std::max<int64_t>(1, steps / 10);
  const int64_t into = update - (steps - decay) + 1;  // 1 at the first of them, `decay` at the last
  if (into <= 0) return r.lr;
  const double share = std::min(1.0, static_cast<double>(into) / static_cast<double>(decay));
  const double left = c.decay == DecayShape::kLinear ? 1 - share : 1 - std::sqrt(share);
  return r.min_lr + (r.lr - r.min_lr) * left;
}

// DeepSpeed's. k is its scheduler's step, one behind the update.
double warmup(const ScheduleConfig& c, double lr, int64_t k, int64_t steps) {
  const WarmupConfig& w = c.warmup;
  const int64_t W = std::max<int64_t>(2, w.num_steps), total = w.total_steps > 0 ? w.total_steps : steps;
  const double top = w.max_lr > 0 ? w.max_lr : lr;
  if (k < 0) return w.min_lr;
  double share = 1;
  if (k < W) {
    share = rise(w, k, W);
  } else if (c.type == ScheduleType::kWarmupDecay) {
    share = std::max(0.0, static_cast<double>(total - k) / std::max(1.0, static_cast<double>(total - W)));
  }
  return w.min_lr + (top - w.min_lr) * share;
}

double warmup_cosine(const WarmupConfig& w, double lr, int64_t k, int64_t steps) {
  const int64_t W = std::max<int64_t>(2, w.num_steps), total = w.total_steps > 0 ? w.total_steps : steps;
  if (k < 0) return 0;
  if (k < W) return lr * (w.min_ratio + rise(w, k, W) * (1 - w.min_ratio));
  const auto left = static_cast<double>(std::max<int64_t>(1, total - W));
  const double share = std::min(1.0, static_cast<double>(k - W + 1) / left);
  return lr * std::max(0.0, w.cos_min_ratio + (1 - w.cos_min_ratio) * half_cosine(share));
}

double range_test(const RangeTestConfig& c, int64_t k) {
  if (k < 0) return c.min_lr;
  double intervals = static_cast<double>(k + 1) / static_cast<double>(c.step_size);
  if (c.staircase) intervals = std::floor(intervals);
  return c.min_lr * (1 + c.step_rate * intervals);
}

struct Cycle {
  double first, second, total;
  int64_t first_stairs, second_stairs;
  explicit Cycle(const OneCycleConfig& c)
      : first(static_cast<double>(c.first_step_size)),
        second(static_cast<double>(c.second_step_size.value_or(c.first_step_size))),
        total(first + second),
        first_stairs(c.first_stair_count),
        second_stairs(c.second_stair_count.value_or(c.first_stair_count)) {}
  bool holds(int64_t k) const { return static_cast<double>(k) < total; }

  // Share of the way from least to most at step k of the cycle.
  double height(int64_t k) const {
    const auto next = static_cast<double>(k + 1);
    const double x = 1.0 + next / total - std::floor(1 + next / total), ratio = first / total;
    const bool rising = x <= ratio;
    const int64_t stairs = rising ? first_stairs : second_stairs;
    if (stairs <= 0) return rising ? x / ratio : (x - 1) / (ratio - 1);
    const double at = std::fmod(next, total), count = static_cast<double>(stairs);
    return std::floor(at <= first ? at * count / first : (total - at) * count / second) / count;
  }
  // Intervals of `step` since the cycle's end, at step k after it.
  double intervals(int64_t k, int64_t step) const {
    return (static_cast<double>(k) - total + 1) / static_cast<double>(step);
  }
};

double one_cycle(const OneCycleConfig& c, int64_t k) {
  const Cycle cycle(c);
  if (k < 0) return c.min_lr;
  if (cycle.holds(k)) return c.min_lr + (c.max_lr - c.min_lr) * cycle.height(k);
  if (c.decay_step_size == 0 || c.decay_lr_rate == 0) return c.min_lr;
  return c.min_lr / (1 + c.decay_lr_rate * cycle.intervals(k, c.decay_step_size));
}

void require(bool holds, const char* key, const char* what) {
  if (!holds) throw UserError(key, what);
}

}  // namespace

void check(const ScheduleConfig& c) {
  require(c.decay_steps >= 0, "schedule.decay_steps", "must be 0 (a tenth of the run) or more");
  require(c.warmup.num_steps > 0, "schedule.warmup.num_steps", "must be at least 1");
  require(c.warmup.total_steps >= 0, "schedule.warmup.total_steps", "must be 0 (the run's steps) or more");
  require(c.warmup.min_lr >= 0, "schedule.warmup.min_lr", "must be 0 or more");
  require(c.warmup.max_lr >= 0, "schedule.warmup.max_lr", "must be 0 (optimizer.lr) or more");
  require(c.range_test.step_size > 0, "schedule.range_test.step_size", "must be at least 1");
  require(c.range_test.min_lr > 0, "schedule.range_test.min_lr", "must be above 0");
  require(c.one_cycle.first_step_size > 0, "schedule.one_cycle.first_step_size", "must be at least 1");
  require(c.one_cycle.second_step_size.value_or(0) >= 0, "schedule.one_cycle.second_step_size",
          "must be 0 or more");
  require(c.one_cycle.decay_step_size >= 0, "schedule.one_cycle.decay_step_size",
          "must be 0 (no decay) or more");
  const auto share = [](double x) { return x >= 0 && x < 1; };
  require(share(c.one_cycle.min_momentum) && share(c.one_cycle.max_momentum),
          "schedule.one_cycle.max_momentum", "and min_momentum must be in [0, 1)");
}

double scheduled_lr(const ScheduleConfig& c, const LrRange& r, int64_t update, int64_t steps) {
  const int64_t k = update - 1;
  switch (c.type) {
    case ScheduleType::kWarmup:
    case ScheduleType::kWarmupDecay:
      return warmup(c, r.lr, k, steps);
    case ScheduleType::kWarmupCosine:
      return warmup_cosine(c.warmup, r.lr, k, steps);
    case ScheduleType::kRangeTest:
      return range_test(c.range_test, k);
    case ScheduleType::kOneCycle:
      return one_cycle(c.one_cycle, k);
    case ScheduleType::kCosine:
    case ScheduleType::kConstant:
    case ScheduleType::kWsd:
      break;
  }
  if (update < r.warmup_steps)
    return r.lr * static_cast<double>(update + 1) / static_cast<double>(r.warmup_steps);
  if (c.type == ScheduleType::kConstant) return r.lr;
  return c.type == ScheduleType::kWsd ? wsd(c, r, update, steps) : cosine(r, update, steps);
}

std::optional<std::array<double, 2>> scheduled_betas(const ScheduleConfig& config, int64_t update) {
  const OneCycleConfig& c = config.one_cycle;
  if (config.type != ScheduleType::kOneCycle || !c.cycle_momentum) return std::nullopt;
  constexpr double kBeta2 = 0.99;
  const int64_t k = update - 1;
  const Cycle cycle(c);
  // Its scheduler sets the least momentum before its first step.
  if (k < 0) return std::array{c.min_momentum, kBeta2};
  if (cycle.holds(k))
    return std::array{c.max_momentum - (c.max_momentum - c.min_momentum) * cycle.height(k), kBeta2};
  if (c.decay_step_size == 0 || c.decay_momentum_rate == 0) return std::array{c.max_momentum, kBeta2};
  return std::array{c.max_momentum * (1 + c.decay_momentum_rate * cycle.intervals(k, c.decay_step_size)),
                    kBeta2};
}

}  // namespace flywheel::train
