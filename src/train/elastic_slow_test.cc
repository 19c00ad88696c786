// Whole runs that lose a worker for good: they go on with fewer data ranks and grow again, and their bits are
// those of runs that went on from the same checkpoints on meshes of these sizes.
#include "train/elastic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "base/cases_for_tests.h"
#include "base/json.h"
#include "runtime/launcher_for_tests.h"
#include "store/store.h"
#include "train/run_for_tests.h"

namespace flywheel::train {
namespace {

using testing::HasSubstr;

class Elastic : public RunTraining {
 protected:
  void SetUp() override {
    RunTraining::SetUp();
    config_.mesh.data = 3;
    config_.evaluate.every_steps = 0;
    config_.checkpoint = {.every_steps = 5, .keep = 0};
    config_.elastic = {.min_data = 1, .wait_s = 2};
  }
  TrainOptions options(bool fresh = true) {
    runtime::Cluster cluster;
    cluster.launcher = [places = places_](const runtime::LocalLauncherOptions& local) {
      return std::make_unique<runtime::FewPlaces>(local, places);
    };
    return {.fresh = fresh, .cluster = std::move(cluster)};
  }
  // From step 13 on the last worker is lost and has no place any more; from `grows` on it has one again.
  TrainHooks loses_one(int64_t grows, int64_t dies = 0) {
    return {.on_start = [this](const std::string& run, int64_t, bool) { id_ = run; },
            .on_step =
                [=, this, lost = false](const Progress& p) mutable {
                  if (p.step >= 13 && !lost && p.data_ranks == 3 && *places_ == 3) {
                    lost = true;
                    *places_ = 2;
                    kill(static_cast<pid_t>(p.worker_pids.at(2)), SIGKILL);
                  }
                  if (grows > 0 && p.data_ranks == 2 && p.step >= grows) *places_ = 3;
                  if (dies > 0 && p.data_ranks == 2 && p.step >= dies) throw ControllerDies();
                }};
  }
  // A run of so many data ranks that begins with that checkpoint of another run.
  TrainReport run_from(const std::string& folder, int64_t step, int64_t data) {
    TrainConfig whole = config_;
    config_.mesh.data = data;
    config_.elastic = {};
    std::string id;
    EXPECT_THROW(run({.on_start = [&](const std::string& run, int64_t, bool) { id = run; },
                      .on_step = [](const Progress&) { throw ControllerDies(); }}),
                 ControllerDies);
    const std::string own = env::home() + "/runs/" + id, name = fmt::format("/checkpoints/step-{:08}", step);
    EXPECT_TRUE(remove_all(own).ok());
    EXPECT_TRUE(make_folders(own + "/checkpoints").ok());
    std::filesystem::copy(folder + name, own + name, std::filesystem::copy_options::recursive);
    TrainReport report = run({}, {.resume = id});
    EXPECT_EQ(report.losses.size(), static_cast<size_t>(config_.steps - step));
    config_ = std::move(whole);
    return report;
  }
  // A run that lost a worker and has grown again is as if it had gone on from its checkpoints on meshes of
  // two, and then of three.
  void expect_as_from_its_checkpoints(const TrainReport& report) {
    const int64_t fewer = report.mesh_changes.at(0).step, more = report.mesh_changes.at(1).step;
    const TrainReport of_two = run_from(report.folder, fewer, 2);
    const auto begin = report.losses.begin();
    EXPECT_EQ(std::vector<double>(begin + fewer, begin + more),
              std::vector<double>(of_two.losses.begin(), of_two.losses.begin() + (more - fewer)));
    const TrainReport of_three = run_from(report.folder, more, 3);
    EXPECT_EQ(std::vector<double>(begin + more, report.losses.end()), of_three.losses);
    EXPECT_EQ(report.sha256, of_three.sha256);
  }
  std::shared_ptr<std::atomic<int>> places_ = std::make_shared<std::atomic<int>>(3);
  std::string id_;
};

TEST_F(Elastic, WithoutLossesNothingChanges) {
  const TrainReport elastic = run({}, options());
  config_.elastic = {};
  const TrainReport plain = run({}, options());
  EXPECT_TRUE(elastic.mesh_changes.empty());
  EXPECT_EQ(elastic.losses, plain.losses);
  EXPECT_EQ(elastic.sha256, plain.sha256);
}

TEST_F(Elastic, GoesOnWithFewerAndGrowsAgain) {
  const TrainReport report = run(loses_one(21), options());
  ASSERT_EQ(report.mesh_changes.size(), 2u);
  const MeshChange &fewer = report.mesh_changes[0], &more = report.mesh_changes[1];
  EXPECT_EQ(fewer.before, 3);
  EXPECT_EQ(fewer.after, 2);
  EXPECT_THAT(fewer.reason, HasSubstr("nobody could be found for rank 2 in "));
  EXPECT_EQ(fewer.step % 5, 0);
  EXPECT_GE(fewer.step, 10) << "the checkpoint of step 10 was on disk";
  EXPECT_LE(fewer.step, 20);
  EXPECT_EQ(more.step, 25);
  EXPECT_EQ(more.before, 2);
  EXPECT_EQ(more.after, 3);
  EXPECT_EQ(report.losses.size(), 30u);
  const Json recorded = parse_json(read_file(report.folder + "/elastic.json").value()).value();
  EXPECT_EQ(recorded.at(0), to_json(fewer));
  EXPECT_EQ(recorded.at(1), to_json(more));
  const auto ranks = store::Store::open().value().metric(report.run, "data_ranks").value();
  ASSERT_EQ(ranks.size(), 2u);
  EXPECT_EQ(ranks[0].value, 2);
  EXPECT_EQ(ranks[1].value, 3);

  expect_as_from_its_checkpoints(report);
}

// The new meshes' workers take their parts of the checkpoints into files, with other shares than before; the
// runs that this one is compared with have all in memory.
TEST_F(Elastic, WithParametersInFilesGoesOnWithFewerAndGrowsAgain) {
  if (!is_drawn(3)) GTEST_SKIP() << kNotDrawn;
  config_.mesh.zero = 3;
  config_.offload = {.optimizer = OffloadDevice::kNvme,
                     .parameters = OffloadDevice::kNvme,
                     .path = folder_ / "offload",
                     .sub_group_values = 1024,
                     .buffers = 3};
  const TrainReport report = run(loses_one(21), options());
  ASSERT_EQ(report.mesh_changes.size(), 2u);
  EXPECT_EQ(report.mesh_changes[0].after, 2);
  EXPECT_EQ(report.mesh_changes[1].after, 3);
  EXPECT_EQ(report.losses.size(), 30u);
  EXPECT_TRUE(list_folder(config_.offload.path).value().empty()) << "the mesh before has left files";
  config_.offload = {};
  expect_as_from_its_checkpoints(report);
}

// Who takes the run up finds which mesh it has now, and starts nobody of the one before.
TEST_F(Elastic, TheControllerDiesOnTheSmallerMesh) {
  EXPECT_THROW(run(loses_one(0, 21), options()), ControllerDies);
  EXPECT_EQ(*places_, 2);
  const TrainReport report = run({}, options(false));
  EXPECT_EQ(report.run, id_);
  ASSERT_EQ(report.mesh_changes.size(), 1u);
  EXPECT_EQ(report.losses.size(), 30u);
  const int64_t step = report.mesh_changes[0].step;
  const TrainReport of_two = run_from(report.folder, step, 2);
  EXPECT_EQ(std::vector<double>(report.losses.begin() + step, report.losses.end()), of_two.losses);
  EXPECT_EQ(report.sha256, of_two.sha256);
}

// Too few are left: the run ends and says so, and goes on whole when it is taken up with more.
TEST_F(Elastic, TooFewAreAnErrorAndTheRunGoesOnWhenThereAreMore) {
  const TrainReport undisturbed = run({}, options());
  config_.elastic.min_data = 3;
  const auto ended = run_training(config_, options(), loses_one(0));
  ASSERT_FALSE(ended.ok());
  EXPECT_THAT(ended.error().message, HasSubstr("nobody could be found for rank 2"));
  EXPECT_THAT(ended.error().message, HasSubstr("2 of 3 workers are left"));
  EXPECT_THAT(ended.error().message, HasSubstr("`flywheel train --resume " + id_ + "` goes on"));
  *places_ = 3;
  TrainOptions resume = options(false);
  resume.resume = id_;
  const TrainReport report = run({}, resume);
  ASSERT_EQ(report.mesh_changes.size(), 1u);
  EXPECT_EQ(report.mesh_changes[0].after, 3);
  EXPECT_EQ(report.losses, undisturbed.losses);
  EXPECT_EQ(report.sha256, undisturbed.sha256);
}

}  // namespace
}  // namespace flywheel::train
