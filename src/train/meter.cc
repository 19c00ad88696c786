#include "train/meter.h"

#include <algorithm>

namespace flywheel::train {
namespace {

constexpr double kRecentSeconds = 10;

}  // namespace

void Meter::step(int64_t tokens, double now) {
  const auto count = static_cast<double>(tokens);
  if (!recent_.empty()) all_tokens_ += count, all_seconds_ += now - recent_.back().end;
  recent_.push_back({now, count});
  while (recent_.size() > 2 && now - recent_.front().end > kRecentSeconds) recent_.pop_front();
}

std::optional<double> Meter::last_step_seconds() const {
  if (recent_.size() < 2) return std::nullopt;
  return recent_.back().end - recent_[recent_.size() - 2].end;
}

double Meter::tokens_per_second() const {
  if (recent_.size() < 2) return 0;
  double tokens = 0;
  for (size_t i = 1; i < recent_.size(); ++i) tokens += recent_[i].tokens;
  return tokens / std::max(1e-9, recent_.back().end - recent_.front().end);
}

double Meter::average_tokens_per_second() const {
  return all_tokens_ / std::max(1e-9, all_seconds_);
}

}  // namespace flywheel::train
