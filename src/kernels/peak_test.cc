#include "kernels/peak.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#include "base/cpu.h"
#include "base/deadline.h"
#include "base/slowness_for_tests.h"

namespace flywheel::kernels {
namespace {

// On a thread that may run on one processor alone, as may all that it starts.
void on_one_processor(const std::function<void()>& body) {
  std::thread([&] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    body();
  }).join();
}

// A processor is not always as quick: its clock changes, and a hypervisor gives it to others. What each test
// looks for is a factor of 4 and more.
void expect_about(double value, double expected) {
  EXPECT_GT(value, expected / 2.5);
  EXPECT_LT(value, expected * 2.5);
}

TEST(Peak, OthersOnTheProcessorDoNotLowerIt) {
  on_one_processor([] {
    ThreadPool pool(1);
    const double alone = peak_flops(DType::kF32, pool);
    EXPECT_GT(alone, 1e8);
    std::atomic<bool> stop = false;
    std::vector<std::jthread> others;
    for (int i = 0; i < 7; ++i) {
      others.emplace_back([&] {
        while (!stop) {
        }
      });
    }
    const Stopwatch clock;
    const double beside_others = peak_flops(DType::kF32, pool);
    EXPECT_LT(clock.seconds(), 2 * kSlowness);
    stop = true;
    expect_about(beside_others, alone);
  });
}

TEST(Peak, ThreadsWithoutAProcessorAddNothing) {
  on_one_processor([] {
    ThreadPool one(1), many(8);
    const double of_one = peak_flops(DType::kBF16, one);
    expect_about(peak_flops(DType::kBF16, many), of_one);
  });
}

TEST(Peak, MemoryIsReadInABoundedTime) {
  ThreadPool pool(usable_cores());
  const Stopwatch clock;
  const double bytes = peak_read_bytes_per_second(pool);
  EXPECT_TRUE(std::isfinite(bytes));
  EXPECT_GT(bytes, 1e8);
  EXPECT_LT(clock.seconds(), 3 * kSlowness) << "0.2 s where nothing else runs";
}

}  // namespace
}  // namespace flywheel::kernels
