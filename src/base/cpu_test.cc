#include "base/cpu.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <thread>

namespace flywheel {
namespace {

TEST(Cpu, CoresAreThoseThatAQuotaFills) {
  EXPECT_GT(usable_core_seconds(), 0);
  EXPECT_EQ(usable_cores(), std::max(1, static_cast<int>(std::ceil(usable_core_seconds()))));
}

TEST(Cpu, CoresAreThoseOfTheThreadThatAsks) {
  std::thread([] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    EXPECT_EQ(usable_cores(), 1);
    EXPECT_LE(usable_core_seconds(), 1);
  }).join();
}

}  // namespace
}  // namespace flywheel
