#include "train/schedule.h"

#include <cmath>
#include <random>

#include "base/philox.h"

namespace flywheel::train {
namespace {

constexpr LrRange kRange{.lr = 1e-3, .min_lr = 1e-4, .warmup_steps = 20};

TEST(Schedule, CosineBeginsAtItsTopAndEndsAtMinLr) {
  const ScheduleConfig c;
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 0, 100), 1e-3 / 20);
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 19, 100), 1e-3);
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 20, 100), 1e-3);
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 99, 100), 1e-4);
  for (int64_t u = 20; u < 99; ++u)
    EXPECT_GT(scheduled_lr(c, kRange, u, 100), scheduled_lr(c, kRange, u + 1, 100));
}

TEST(Schedule, ConstantAndWsd) {
  ScheduleConfig c{.type = ScheduleType::kConstant};
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 9, 100), 5e-4);
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 99, 100), 1e-3);
  c = {.type = ScheduleType::kWsd, .decay_steps = 10};
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 89, 100), 1e-3);
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 94, 100), 1e-3 - 9e-4 * 0.5);
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 99, 100), 1e-4);
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 150, 100), 1e-4);
  c.decay = DecayShape::kSqrt;
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 94, 100), 1e-4 + 9e-4 * (1 - std::sqrt(0.5)));
}

// The formulas of WarmupLR and its kin at a few places; tests/deepspeed compares all of them step for step.
TEST(Schedule, WarmupKinds) {
  ScheduleConfig c{.type = ScheduleType::kWarmup};
  c.warmup = {.min_lr = 0, .max_lr = 1e-4, .num_steps = 1000};
  EXPECT_EQ(scheduled_lr(c, kRange, 0, 5000), 0);
  EXPECT_EQ(scheduled_lr(c, kRange, 1, 5000), 0);
  EXPECT_NEAR(scheduled_lr(c, kRange, 100, 5000), 1e-4 * std::log(100) / std::log(1000), 1e-18);
  EXPECT_DOUBLE_EQ(scheduled_lr(c, kRange, 1001, 5000), 1e-4);
  c.warmup.type = WarmupShape::kLinear;
  EXPECT_NEAR(scheduled_lr(c, kRange, 501, 5000), 5e-5, 1e-18);
  c.type = ScheduleType::kWarmupDecay;
  EXPECT_NEAR(scheduled_lr(c, kRange, 3001, 5000), 5e-5, 1e-18);
  EXPECT_EQ(scheduled_lr(c, kRange, 5001, 5000), 0);
  c.type = ScheduleType::kWarmupCosine;
  EXPECT_NEAR(scheduled_lr(c, kRange, 9000, 5000), 1e-3 * 1e-4, 1e-18);
}

TEST(Schedule, OneCycleTurnsTheMomentumTheOtherWay) {
  ScheduleConfig c{.type = ScheduleType::kOneCycle};
  c.one_cycle.first_step_size = 10;
  EXPECT_NEAR(scheduled_lr(c, kRange, 10, 100), 1e-3, 1e-15);  // the top
  EXPECT_NEAR((*scheduled_betas(c, 10))[0], 0.8, 1e-15);
  EXPECT_NEAR((*scheduled_betas(c, 20))[0], 0.9, 1e-15);
  EXPECT_FALSE(scheduled_betas({}, 5).has_value());
}

TEST(Schedule, ReadsItsConfigAndNamesWhatIsWrong) {
  const auto c = parse_config<ScheduleConfig>(
      "t.yaml", "{type: warmup_decay, warmup: {max_lr: 1e-4, num_steps: 10, type: linear}}");
  EXPECT_EQ(c.type, ScheduleType::kWarmupDecay);
  EXPECT_EQ(c.warmup.type, WarmupShape::kLinear);
  check(c);
  try {
    parse_config<ScheduleConfig>("t.yaml", "{type: warmup, warmup: {num_step: 10}}");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("warmup.num_steps"));
  }
  ScheduleConfig wrong;
  wrong.warmup.num_steps = 0;
  EXPECT_THROW(check(wrong), UserError);
}

}  // namespace
}  // namespace flywheel::train
