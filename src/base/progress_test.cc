#include "base/progress.h"

#include <gtest/gtest.h>

namespace flywheel {
namespace {

TEST(Progress, ForPeople) {
  EXPECT_EQ(human_count(1234567), "1,234,567");
  EXPECT_EQ(human_count(-1000), "-1,000");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_seconds(0.0421), "42 ms");
  EXPECT_EQ(human_seconds(125), "2 min 05 s");
  EXPECT_EQ(human_bytes(98.76e6), "98.8 MB");
}

TEST(Progress, Line) {
  ProgressBar bar("train", 200, "steps");
  bar.update(100, "loss 3.2");
  const std::string line = bar.line(100);
  EXPECT_NE(line.find("train █"), std::string::npos) << line;
  EXPECT_NE(line.find("100/200 steps  loss 3.2"), std::string::npos) << line;
  EXPECT_NE(line.find("left"), std::string::npos) << line;
}

}  // namespace
}  // namespace flywheel
