// A point in time after which waiting is pointless. Every wait in the house takes one.
//
//   Deadline deadline = Deadline::after_ms(500);
//   while (!ready()) { if (deadline.expired()) return make_error(ErrorCode::kDeadline, ...); ... }
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>

namespace flywheel {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;  // the clock on the wall may step; this one does not
  static Deadline after_ms(int64_t ms) { return Deadline(Clock::now() + std::chrono::milliseconds(ms)); }
  // For waits whose end another mechanism guarantees (a worker waiting for its controller's next command).
  static Deadline never() { return Deadline(Clock::time_point::max()); }

  bool is_never() const { return at_ == Clock::time_point::max(); }
  bool expired() const { return !is_never() && Clock::now() >= at_; }
  // Milliseconds left, 0 when expired, INT32_MAX for never: fits poll()'s argument.
  int64_t remaining_ms() const {
    if (is_never()) return INT32_MAX;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(at_ - Clock::now()).count();
    return std::clamp<int64_t>(left, 0, INT32_MAX);
  }
  Clock::time_point at() const { return at_; }
  Deadline sooner(Deadline other) const { return at_ <= other.at_ ? *this : other; }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

// Processor time of the calling thread: stands still while the thread sleeps, or waits for its turn on a
// machine that others use.
struct ThreadClock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<ThreadClock>;
  static constexpr bool is_steady = true;
  static time_point now() {
    timespec used{};
    (void)::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return time_point(std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec));
  }
};

// Seconds since construction or restart().
template <typename Clock>
class StopwatchOf {
 public:
  StopwatchOf() : start_(Clock::now()) {}
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  void restart() { start_ = Clock::now(); }

 private:
  typename Clock::time_point start_;
};
using Stopwatch = StopwatchOf<Deadline::Clock>;
using ThreadStopwatch = StopwatchOf<ThreadClock>;  // made and read by the thread that it measures

}  // namespace flywheel
