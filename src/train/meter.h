// How fast a run goes: tokens a second lately and over all, and the share of the machine that this is.
//
//   Meter meter({.flop_per_token = flop_per_token(decoder, length), .peak_flops = peak});
//   meter.step(tokens, clock.seconds());           // as each step ends
//   meter.pause();                                 // an evaluation: the next step's time is not its own
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

namespace flywheel::train {

struct Machine {
  double flop_per_token = 0, peak_flops = 1;
};

class Meter {
 public:
  explicit Meter(Machine machine) : machine_(machine) {}

  // A step of `tokens` has ended `now` seconds after the run began. What a log answered took no time and is
  // not told.
  void step(int64_t tokens, double now);
  void pause() { recent_.clear(); }

  std::optional<double> last_step_seconds() const;
  double tokens_per_second() const;          // of the last seconds; 0 before the second step
  double average_tokens_per_second() const;  // of the whole run, without pauses
  double limit_share(double tokens_per_second) const {
    return tokens_per_second * machine_.flop_per_token / machine_.peak_flops;
  }

 private:
  struct Step {
    double end = 0, tokens = 0;
  };
  Machine machine_;
  std::deque<Step> recent_;
  double all_tokens_ = 0, all_seconds_ = 0;
};

}  // namespace flywheel::train
