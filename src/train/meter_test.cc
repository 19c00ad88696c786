#include "train/meter.h"

#include <gtest/gtest.h>

#include "base/philox.h"

namespace flywheel::train {
namespace {

TEST(Meter, TheFirstStepHasItsRate) {
  Meter meter({.flop_per_token = 10, .peak_flops = 1e4});
  EXPECT_FALSE(meter.tokens_per_second());
  EXPECT_FALSE(meter.average_tokens_per_second());
  meter.begin(5);
  meter.step(100, 5.5);
  EXPECT_DOUBLE_EQ(meter.tokens_per_second().value(), 200);
  EXPECT_DOUBLE_EQ(meter.last_step_seconds().value(), 0.5);
  EXPECT_DOUBLE_EQ(meter.limit_share(200), 0.2);
}

// However long other things take between steps, and however seldom or often: the rate is that of the steps.
TEST(Meter, OnlyTimeInStepsCounts) {
  for (const int evaluate_every : {1, 3, 1000}) {
    Meter meter({});
    Philox rng(7);
    double now = 0, tokens = 0, seconds = 0;
    meter.begin(now);
    for (int step = 1; step <= 50; ++step) {
      const double took = 0.01 + 0.05 * rng.uniform();
      now += took, tokens += 64, seconds += took;
      meter.step(64, now);
      EXPECT_NEAR(meter.tokens_per_second().value(), tokens / seconds, 1e-6 * tokens / seconds);
      if (step % evaluate_every == 0) meter.begin(now += 3);
    }
    EXPECT_NEAR(meter.average_tokens_per_second().value(), tokens / seconds, 1e-6 * tokens / seconds);
  }
}

TEST(Meter, TheRecentRateIsOfTheLastTenSeconds) {
  Meter meter({});
  meter.begin(0);
  for (int i = 1; i <= 20; ++i) meter.step(100, i);             // 100 a second for 20 s
  for (int i = 1; i <= 20; ++i) meter.step(100, 20 + i / 2.0);  // then 200 for 10 s
  EXPECT_NEAR(meter.tokens_per_second().value(), 200, 1e-9);
  EXPECT_NEAR(meter.average_tokens_per_second().value(), 4000.0 / 30, 1e-9);
}

// Answers that waited come in one moment, after a step that seemed long.
TEST(Meter, AnswersThatComeTogetherMakeNoRecord) {
  Meter meter({});
  meter.begin(0);
  meter.step(10, 0.3);
  meter.step(10, 0.3);
  meter.step(10, 0.3);
  EXPECT_NEAR(meter.tokens_per_second().value(), 100, 1e-9);
}

// A run that is taken up: the log answers its first steps, the workers compute them again meanwhile, which is
// the time of the first real answer.
TEST(Meter, WhatTheLogAnsweredTakesNoTime) {
  Meter meter({});
  meter.begin(0);
  for (int i = 0; i < 30; ++i) meter.forget();
  double now = 7;
  meter.step(10, now);
  EXPECT_FALSE(meter.last_step_seconds());
  EXPECT_FALSE(meter.tokens_per_second());
  meter.step(10, now);  // waited together with it
  meter.step(10, now);
  EXPECT_FALSE(meter.tokens_per_second());
  EXPECT_FALSE(meter.average_tokens_per_second());
  for (int i = 0; i < 100; ++i) meter.step(10, now += 0.1);
  EXPECT_NEAR(meter.tokens_per_second().value(), 100, 5);
  EXPECT_NEAR(meter.average_tokens_per_second().value(), 100, 5);
}

}  // namespace
}  // namespace flywheel::train
