// How fast a run goes: tokens a second lately and over all, and the share of the machine that this is.
//
// Only time in training steps counts. What else a run does (evaluation, a checkpoint) lies between the last
// step()'s time and the next begin()'s.
//
//   Meter meter({.flop_per_token = model_cost(decoder, length).flop_per_token(), .peak_flops = peak});
//   meter.begin(clock.seconds());                  // the first step is sent off
//   meter.step(tokens, clock.seconds());           // as each step ends
//   ...evaluate...; meter.begin(clock.seconds());  // the next step is sent off
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

namespace flywheel::train {

struct Machine {
  double flop_per_token = 0, peak_flops = 1;  // 0: not known
};

class Meter {
 public:
  explicit Meter(Machine machine) : machine_(machine) {}

  // The next step's time counts from `now` (seconds since the run began), when nothing else is under way.
  void begin(double now);
  // The next step's time is not its own: the log answered the one before, and workers may still be computing
  // it again. The step after that counts from its end.
  void forget();
  // A step of `tokens` has ended.
  void step(int64_t tokens, double now);

  // Nothing where it is not known (yet).
  std::optional<double> last_step_seconds() const { return last_seconds_; }
  std::optional<double> tokens_per_second() const;          // of the last ten seconds in steps
  std::optional<double> average_tokens_per_second() const;  // of all steps whose time is known
  bool knows_limit() const { return machine_.peak_flops > 0; }
  double limit_share(double tokens_per_second) const {
    return tokens_per_second * machine_.flop_per_token / machine_.peak_flops;
  }

 private:
  struct Step {
    double seconds = 0, tokens = 0;
  };
  Machine machine_;
  std::optional<double> begin_;  // of the next step
  std::optional<double> last_seconds_;
  int unsure_ = 0;  // steps to come, until a rate is told
  std::deque<Step> recent_;
  double recent_seconds_ = 0, all_tokens_ = 0, all_seconds_ = 0;
};

}  // namespace flywheel::train
