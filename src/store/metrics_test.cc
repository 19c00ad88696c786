#include "store/metrics.h"

#include <gtest/gtest.h>

#include <map>

#include "base/deadline.h"
#include "base/file.h"
#include "base/philox.h"
#include "store/store.h"

namespace flywheel::store {
namespace {

TEST(Metrics, EveryFlippedBitOfAChunkIsNoticed) {
  std::vector<MetricPoint> points;
  Philox rng(5);
  for (int64_t i = 0; i < 10; ++i) points.push_back({i, static_cast<int64_t>(rng.next_u32()), rng.uniform()});
  const std::string chunk = pack_points(points.data(), points.size());
  std::vector<MetricPoint> back;
  ASSERT_TRUE(unpack_points(chunk, back).ok());
  ASSERT_EQ(back.size(), points.size());
  EXPECT_EQ(back[7].time_ms, points[7].time_ms);
  for (size_t bit = 0; bit < chunk.size() * 8; ++bit) {
    std::string damaged = chunk;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_EQ(unpack_points(damaged, back).error().code, ErrorCode::kCorrupt);
  }
  for (size_t size = 0; size < chunk.size(); ++size) {
    EXPECT_FALSE(unpack_points(chunk.substr(0, size), back).ok()) << size;
  }
}

TEST(Metrics, TheLastPointOfAStepIsKept) {
  Philox rng(6);
  std::vector<MetricPoint> points;
  std::map<int64_t, double> expected;
  for (int i = 0; i < 1000; ++i) {
    const auto step = static_cast<int64_t>(rng.below(100));
    points.push_back({step, 0, static_cast<double>(i)});
    expected[step] = i;
  }
  keep_last_of_each_step(points);
  ASSERT_EQ(points.size(), expected.size());
  auto it = expected.begin();
  for (const MetricPoint& point : points) {
    EXPECT_EQ(point.step, it->first);
    EXPECT_EQ(point.value, it->second);
    ++it;
  }
}

TEST(Metrics, HundredThousandPointsASecond) {
  TempFolder folder;
  Store store = Store::open(folder.path()).value();
  auto run = store.create_run({}).value();
  constexpr int64_t kSteps = 20'000;
  const Stopwatch clock;
  for (int64_t step = 0; step < kSteps; ++step) {
    run.log_metrics(step, {{"loss", 1}, {"lr", 2}, {"grad_norm", 3}, {"tokens_per_second", 4}, {"mfu", 5}});
  }
  ASSERT_TRUE(run.finish(RunStatus::kFinished).ok());
  EXPECT_GE(kSteps * 5 / clock.seconds(), 100'000);
}

}  // namespace
}  // namespace flywheel::store
