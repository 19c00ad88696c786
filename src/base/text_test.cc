#include "base/text.h"

#include <gtest/gtest.h>

namespace flywheel {
namespace {

using Parts = std::vector<std::string>;

TEST(Split, GivesThePartsBetweenSeparators) {
  EXPECT_EQ(split("", ','), Parts());
  EXPECT_EQ(split("data", ','), Parts({"data"}));
  EXPECT_EQ(split("data,tensor", ','), Parts({"data", "tensor"}));
  EXPECT_EQ(split(",a,,b,", ','), Parts({"", "a", "", "b", ""}));
  EXPECT_EQ(split(",", ','), Parts({"", ""}));
}

}  // namespace
}  // namespace flywheel
