// Runs, their metrics, and the lineage that they and artifacts make.
#include "store/run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <thread>

#include "base/hash.h"
#include "base/philox.h"
#include "store/store_for_test.h"

namespace flywheel::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RunTest : public StoreForTest {};
FLYWHEEL_TEST_ON_BOTH_DATABASES(RunTest);

TEST_P(RunTest, RunKeepsWhatWasSaid) {
  put("docs", "text");
  auto run =
      store().create_run({.name = "tiny", .kind = "train", .config = "model: {layers: 4}\nlr: 1\n"}).value();
  EXPECT_EQ(run.id(), "tiny-1");
  ASSERT_TRUE(run.add_input("docs").ok());
  ASSERT_TRUE(store().tag_run("tiny-1", {{"team", "red"}, {"goal", "baseline"}}).ok());
  ASSERT_TRUE(store().tag_run("tiny-1", {{"team", "blue"}}, {"goal"}).ok());
  EXPECT_EQ(store().tag_run("tiny-1", {{"a key", "x"}}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(store().tag_run("tiny-7", {{"team", "blue"}}).error().code, ErrorCode::kNotFound);
  run.log_metrics(0, {{"loss", 5.5}, {"lr", 0.1}});
  EXPECT_EQ(store().run_info("tiny-1")->status, RunStatus::kRunning);
  const Artifact model = put("tiny", "w", {"docs:1"}, run.id());
  ASSERT_TRUE(run.finish(RunStatus::kFinished).ok());
  ASSERT_TRUE(run.finish(RunStatus::kFailed).ok());  // changes nothing
  const RunInfo info = open().run_info("tiny-1").value();
  EXPECT_EQ(info.status, RunStatus::kFinished);
  EXPECT_EQ(info.config, "model: {layers: 4}\nlr: 1\n");
  EXPECT_EQ(info.params, (std::map<std::string, std::string>{{"lr", "1"}, {"model.layers", "4"}}));
  EXPECT_EQ(info.tags, (std::map<std::string, std::string>{{"team", "blue"}}));
  EXPECT_THAT(info.inputs, ElementsAre("docs:1"));
  EXPECT_THAT(info.outputs, ElementsAre("tiny:1"));
  ASSERT_EQ(info.metrics.size(), 2u);
  EXPECT_EQ(info.metrics[0].name, "loss");
  EXPECT_EQ(info.metrics[0].last_value, 5.5);
  EXPECT_GE(info.finished_ms, info.created_ms);
  { (void)store().create_run({.name = "tiny", .kind = "evaluate"}).value(); }
  EXPECT_EQ(store().run_info("tiny-2")->status, RunStatus::kFailed) << "a handle that just went away";
  EXPECT_EQ(store().list_runs({.kind = "train"})->size(), 1u);
  EXPECT_EQ(store().list_runs({.tags = {{"team", "blue"}}})->size(), 1u);
  EXPECT_EQ(store().list_runs({.tags = {{"team", "red"}}})->size(), 0u);
  EXPECT_EQ(store().list_runs()->at(0).id, "tiny-2");
  EXPECT_THAT(store().run_info("tiny-9").error().message, HasSubstr("no run tiny-9; did you mean tiny-"));
}

TEST_P(RunTest, MetricsComeBackBitForBitWhateverTheBatches) {
  auto run = store().create_run({}).value();
  Philox rng(3);
  std::vector<double> values;
  for (int64_t step = 0; step < 5000; ++step) {
    double value = rng.uniform_double() * 1e300;
    if (step == 17) value = std::numeric_limits<double>::quiet_NaN();
    if (step == 18) value = -std::numeric_limits<double>::infinity();
    values.push_back(value);
    run.log_metric("loss", step, value);
    if (rng.below(300) == 0) run.flush().value();
  }
  ASSERT_TRUE(run.finish(RunStatus::kFinished).ok());
  std::vector<MetricPoint> points = store().metric(run.id(), "loss").value();
  ASSERT_EQ(points.size(), values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(points[i].step, static_cast<int64_t>(i));
    EXPECT_EQ(std::bit_cast<uint64_t>(points[i].value), std::bit_cast<uint64_t>(values[i]));
  }
  // A resumed run logs steps again: the later point counts.
  auto again = store().resume_run(run.id()).value();
  EXPECT_EQ(store().run_info(run.id())->status, RunStatus::kRunning);
  for (int64_t step = 4990; step < 5010; ++step) again.log_metric("loss", step, 1);
  ASSERT_TRUE(again.finish(RunStatus::kFinished).ok());
  points = store().metric(run.id(), "loss").value();
  ASSERT_EQ(points.size(), 5010u);
  EXPECT_EQ(points[4989].value, values[4989]);
  EXPECT_EQ(points[4990].value, 1);
  EXPECT_EQ(store().run_info(run.id())->metrics[0].points, 5020);
  EXPECT_THAT(store().metric(run.id(), "lss").error().message, HasSubstr("it has loss"));
}

TEST_P(RunTest, MetricsOfManyThreadsAreAllKept) {
  auto run = store().create_run({}).value();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t step = 0; step < 20'000; ++step)
        run.log_metric("m" + std::to_string(t % 2), t * 20'000 + step, 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(run.finish(RunStatus::kFinished).ok());
  EXPECT_EQ(store().metric(run.id(), "m0")->size(), 40'000u);
  EXPECT_EQ(store().metric(run.id(), "m1")->size(), 40'000u);
}

TEST_P(RunTest, LineageFromRawFilesToTheModelAndBack) {
  const Artifact raw =
      store().put_source("raw/docs", "/usr/share/doc", sha256_hex("listing"), 40'000'000).value();
  EXPECT_EQ(store().put_source("raw/docs", "/usr/share/doc", sha256_hex("listing"), 40'000'000)->version, 1);
  EXPECT_EQ(store().put_source("raw/docs", "/usr/share/doc", sha256_hex("changed"), 41'000'000)->version, 2);
  auto prepare = store().create_run({.name = "prepare", .kind = "data"}).value();
  ASSERT_TRUE(prepare.add_input("raw/docs:1").ok());
  store()
      .put_artifact({.kind = "tokenizer", .name = "bpe", .contents = {{"t", "12"}}, .run = prepare.id()})
      .value();
  store()
      .put_artifact({.kind = "dataset", .name = "docs", .contents = {{"d", "12345"}}, .run = prepare.id()})
      .value();
  ASSERT_TRUE(prepare.finish(RunStatus::kFinished).ok());
  auto train = store().create_run({.name = "tiny", .kind = "train"}).value();
  put("tiny", "weights", {"docs", "bpe"}, train.id());
  ASSERT_TRUE(train.finish(RunStatus::kFinished).ok());
  put("quantized", "w", {"tiny"});

  EXPECT_EQ(draw_lineage(store().lineage("quantized").value()),
            "model quantized:1  1 B\n"
            "└─ model tiny:1  7 B\n"
            "   └─ run tiny-1 (train)  finished\n"
            "      ├─ tokenizer bpe:1  2 B\n"
            "      │  └─ run prepare-1 (data)  finished\n"
            "      │     └─ source raw/docs:1  40.0 MB at /usr/share/doc\n"
            "      └─ dataset docs:1  5 B\n"
            "         └─ run prepare-1 (data)  finished  (see above)\n");
  EXPECT_EQ(draw_lineage(store().lineage("raw/docs:1", Store::Direction::kDownstream).value()),
            "source raw/docs:1  40.0 MB at /usr/share/doc\n"
            "└─ run prepare-1 (data)  finished\n"
            "   ├─ tokenizer bpe:1  2 B\n"
            "   │  └─ run tiny-1 (train)  finished\n"
            "   │     └─ model tiny:1  7 B\n"
            "   │        └─ model quantized:1  1 B\n"
            "   └─ dataset docs:1  5 B\n"
            "      └─ run tiny-1 (train)  finished\n"
            "         └─ model tiny:1  7 B  (see above)\n");
  const Json json = lineage_to_json(store().lineage("tiny").value());
  EXPECT_EQ(json["children"][0]["id"], "tiny-1");
  EXPECT_EQ(json["children"][0]["children"][0]["id"], "bpe:1");
}

}  // namespace
}  // namespace flywheel::store
