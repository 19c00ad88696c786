#include "kernels/peak.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "base/deadline.h"
#include "kernels/scratch_internal.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {

double peak_flops(DType dtype, ThreadPool& pool) {
  const auto spin = dtype == DType::kBF16 ? table().spin_bf16 : table().spin_f32;
  constexpr int64_t kRounds = 100000;
  double best = 0;
  for (const Stopwatch all; all.seconds() < 0.05;) {
    double flop = 0;
    const Stopwatch one;
    flop = pool.parallel_sum(pool.size(), 1, [&](int64_t, int64_t) { return spin(kRounds); });
    best = std::max(best, flop / one.seconds());
  }
  return best;
}

double peak_read_bytes_per_second(ThreadPool& pool) {
  constexpr int64_t n = 64 << 20;
  const std::unique_ptr<float, decltype(&std::free)> memory(
      static_cast<float*>(allocate_aligned(n * static_cast<int64_t>(sizeof(float)))), &std::free);
  std::fill_n(memory.get(), n, 1.0f);
  const auto read = table().read_all;
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const Stopwatch one;
    const double sum = pool.parallel_sum(n, 1 << 20, [&](int64_t begin, int64_t end) {
      return static_cast<double>(read(memory.get() + begin, end - begin));
    });
    if (sum > 0) best = std::max(best, static_cast<double>(n) * sizeof(float) / one.seconds());
  }
  return best;
}

}  // namespace flywheel::kernels
