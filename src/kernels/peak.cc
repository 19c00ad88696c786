#include "kernels/peak.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "base/cpu.h"
#include "base/deadline.h"
#include "kernels/scratch_internal.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {
namespace {

constexpr double kSeconds = 0.1;  // of turns, at most
constexpr double kRise = 1.01;    // less is noise

// The most that a turn gave: turns are taken until the last `patience` of them have not raised it, or the
// time is over.
template <typename Turn>
double highest(int patience, Turn turn) {
  double best = 0;
  const Stopwatch all;
  for (int in_vain = 0; in_vain < patience && all.seconds() < kSeconds;) {
    const double value = turn();
    in_vain = value > best * kRise ? 0 : in_vain + 1;
    best = std::max(best, value);
  }
  return best;
}

}  // namespace

double peak_flops(DType dtype, ThreadPool& pool) {
  const auto spin = dtype == DType::kBF16 ? table().spin_bf16 : table().spin_f32;
  constexpr int64_t kRounds = 20000;
  constexpr double kTurnSeconds = 0.003;  // of each thread's own time
  const double flops = highest(15, [&] {
    // Summed turn by turn: a thread may be quick in one because its core's other one is held up.
    return pool.parallel_sum(pool.size(), 1, [&](int64_t, int64_t) {
      const ThreadStopwatch own;
      double flop = 0;
      do {
        flop += spin(kRounds);
      } while (own.seconds() < kTurnSeconds);
      return flop / own.seconds();
    });
  });
  return flops * std::min(1.0, usable_core_seconds() / pool.size());
}

double peak_read_bytes_per_second(ThreadPool& pool) {
  constexpr int64_t kFloats = 64 << 20, kTurnFloats = 8 << 20, kGrain = 1 << 18;
  const std::unique_ptr<float, decltype(&std::free)> memory(
      static_cast<float*>(allocate_aligned(kFloats * static_cast<int64_t>(sizeof(float)))), &std::free);
  pool.parallel_for(kFloats, kGrain, [&](int64_t begin, int64_t end) {
    std::fill(memory.get() + begin, memory.get() + end, 1.0f);
  });
  const auto read = table().read_all;
  int64_t at = 0;
  // Turn by turn through all of it, so that no cache still has what is read: patience is for two rounds.
  return highest(2 * kFloats / kTurnFloats, [&] {
    const float* from = memory.get() + at;
    at = (at + kTurnFloats) % kFloats;
    const Stopwatch one;
    const double sum = pool.parallel_sum(kTurnFloats, kGrain, [&](int64_t begin, int64_t end) {
      return static_cast<double>(read(from + begin, end - begin));
    });
    return sum > 0 ? static_cast<double>(kTurnFloats) * sizeof(float) / one.seconds() : 0.0;
  });
}

}  // namespace flywheel::kernels
