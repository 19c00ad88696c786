// How benchmarks of this room take their time.
#pragma once

#include <algorithm>

#include "base/deadline.h"

namespace flywheel::kernels {

// Seconds of the fastest of several calls, over about 0.3 s, after one that warms up.
template <typename Fn>
double fastest(Fn&& fn) {
  fn();
  double best = 1e9;
  for (const Stopwatch all; all.seconds() < 0.3;) {
    const Stopwatch one;
    fn();
    best = std::min(best, one.seconds());
  }
  return best;
}

}  // namespace flywheel::kernels
