#include "train/loss_scale.h"

namespace flywheel::train {
namespace {

LossScale after(const LossScaleConfig& config, const std::string& steps) {  // o: overflow, .: clean
  LossScale scale = first_loss_scale(config);
  for (const char step : steps) scale = next_loss_scale(config, scale, step == 'o').value();
  return scale;
}

TEST(LossScale, HysteresisTakesTheFirstOverflow) {
  const LossScaleConfig config;
  EXPECT_EQ(after(config, "").scale, 65536);
  EXPECT_EQ(after(config, "o").scale, 65536);
  EXPECT_EQ(after(config, "oo").scale, 32768);
  EXPECT_EQ(after(config, "ooo").scale, 16384);  // and is not filled up by that
  EXPECT_EQ(after(config, "o..o").scale, 32768);
  EXPECT_EQ(after({.consecutive_hysteresis = true}, "o..o").scale, 65536);
}

TEST(LossScale, CleanStepsDoubleIt) {
  const LossScaleConfig config{.window = 3, .hysteresis = 2};
  EXPECT_EQ(after(config, "....").scale, 65536 * 2);  // the first step does not count: nothing came before it
  EXPECT_EQ(after(config, ".......").scale, 65536 * 4);
  const LossScale filled = after(config, "o....");
  EXPECT_EQ(filled.scale, 65536 * 2);
  EXPECT_EQ(filled.hysteresis, 2);
}

TEST(LossScale, LeastScaleIsAnError) {
  const LossScaleConfig config{.initial_power = 1, .hysteresis = 1, .min_scale = 1};
  const LossScale least = after(config, "o");
  EXPECT_EQ(least.scale, 1);
  const auto next = next_loss_scale(config, least, true);
  ASSERT_FALSE(next.ok());
  EXPECT_THAT(next.error().message, testing::HasSubstr("bf16"));
}

TEST(LossScale, FixedStays) {
  EXPECT_EQ(after({.fixed = 128}, "oooo....").scale, 128);
  EXPECT_THROW(check(LossScaleConfig{.window = 0}), UserError);
}

}  // namespace
}  // namespace flywheel::train
