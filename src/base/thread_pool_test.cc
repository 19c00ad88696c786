#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>

namespace flywheel {
namespace {

TEST(ThreadPool, SumDoesNotDependOnThreads) {
  double sums[3];
  int at = 0;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 1000; ++repeat) {
      sums[at] = pool.parallel_sum(10000, 37, [](int64_t b, int64_t e) {
        double s = 0;
        for (int64_t i = b; i < e; ++i) s += 1.0 / static_cast<double>(i + 1);
        return s;
      });
    }
    ++at;
  }
  EXPECT_EQ(sums[0], sums[1]);
  EXPECT_EQ(sums[0], sums[2]);
}

TEST(ThreadPool, RethrowsAndRunsNested) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.parallel_for(100, 1,
                                 [](int64_t b, int64_t) {
                                   if (b == 57) throw std::runtime_error("57");
                                 }),
               std::runtime_error);
  std::atomic<int> sum = 0;
  pool.parallel_for(10, 1, [&](int64_t, int64_t) {
    pool.parallel_for(10, 3, [&](int64_t b, int64_t e) { sum += static_cast<int>(e - b); });
  });
  EXPECT_EQ(sum, 100);
}

}  // namespace
}  // namespace flywheel
