#include "base/deadline.h"

#include <gtest/gtest.h>

#include <thread>

namespace flywheel {
namespace {

TEST(Stopwatch, OfAThreadStandsStillWhileItSleepsAndWhileOthersWork) {
  const Stopwatch wall;
  const ThreadStopwatch own;
  std::thread([] {
    const ThreadStopwatch others;
    while (others.seconds() < 0.1) {
    }
  }).join();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_LT(own.seconds(), 0.05);
  EXPECT_GT(wall.seconds(), 0.14);
}

TEST(Stopwatch, OfAThreadCountsWhatItDoes) {
  const Stopwatch wall;
  ThreadStopwatch own;
  while (own.seconds() < 0.02) {
  }
  // Both clocks tick in steps; a coarse one in steps of 10 ms.
  EXPECT_GT(wall.seconds(), 0.009);
  own.restart();
  EXPECT_LT(own.seconds(), 0.02);
}

}  // namespace
}  // namespace flywheel
