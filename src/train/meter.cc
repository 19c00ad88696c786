#include "train/meter.h"

#include <algorithm>

namespace flywheel::train {
namespace {

constexpr double kRecentSeconds = 10;
// Answers that were waiting while we were busy come at once, as many as steps are in flight (two), and look
// like steps of no time. Behind a begin() their sum is right; after forget() it is nearly, with some more.
constexpr int kUnsureSteps = 4;

}  // namespace

void Meter::begin(double now) {
  begin_ = now;
  unsure_ = 0;
}

void Meter::forget() {
  begin_.reset();
  last_seconds_.reset();
}

void Meter::step(int64_t tokens, double now) {
  if (!begin_) {
    begin_ = now;
    unsure_ = kUnsureSteps;
    return;
  }
  const Step step{std::max(0.0, now - *begin_), static_cast<double>(tokens)};
  begin_ = now;
  last_seconds_ = step.seconds;
  if (unsure_ > 0) --unsure_;
  all_tokens_ += step.tokens, all_seconds_ += step.seconds;
  recent_.push_back(step);
  recent_seconds_ += step.seconds;
  while (recent_.size() > 1 && recent_seconds_ - recent_.front().seconds >= kRecentSeconds) {
    recent_seconds_ -= recent_.front().seconds;
    recent_.pop_front();
  }
}

std::optional<double> Meter::tokens_per_second() const {
  if (unsure_ > 0 || recent_.empty() || recent_seconds_ <= 0) return std::nullopt;
  double tokens = 0;
  for (const Step& step : recent_) tokens += step.tokens;
  return tokens / recent_seconds_;
}

std::optional<double> Meter::average_tokens_per_second() const {
  if (unsure_ > 0 || all_seconds_ <= 0) return std::nullopt;
  return all_tokens_ / all_seconds_;
}

}  // namespace flywheel::train
