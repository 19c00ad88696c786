// The comparison that the tests of kernels rest on: nothing that is not a number passes it, wherever it
// stands.
#include "kernels/random_test_internal.h"

namespace flywheel::kernels {
namespace {

TEST(Comparison, NoBoundIsAboveAResultThatIsNotFinite) {
  const float nan = std::nanf(""), infinity = HUGE_VALF;
  const std::vector<double> ones = {1, 1, 1, 1};
  for (const std::vector<float>& got :
       {std::vector<float>{1, 999, nan, 1}, {nan, 1, 1, 1}, {1, 1, 1, nan}, {1, infinity, 1, 1}}) {
    EXPECT_EQ(worst_error(got, ones), HUGE_VAL);
    EXPECT_EQ(worst_error_of_largest(got, ones), HUGE_VAL);
  }
  EXPECT_FALSE(worst_error({1, 1}, {1, std::nan("")}) < 1e300);
  EXPECT_FALSE(worst_error_of_largest({1, infinity}, {1, HUGE_VAL}) < 1e300);
  EXPECT_EQ(worst_error({1}, {1, 1}), HUGE_VAL);
}

TEST(Comparison, ErrorsAreSharesOfWhatIsWanted) {
  EXPECT_DOUBLE_EQ(worst_error({2, 2.5f, 2}, {2, 2, 2}), 0.25);
  EXPECT_DOUBLE_EQ(worst_error_of_largest({0, 4.5f}, {0, 4}), 0.125);
  EXPECT_EQ(worst_error({1, -1}, {1, -1}), 0);
}

}  // namespace
}  // namespace flywheel::kernels
