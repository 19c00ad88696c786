// Whole runs with state and parameters in files: their disk becomes full, and other meshes go on from their
// checkpoints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "base/cases_for_tests.h"
#include "base/small_disk_for_tests.h"
#include "store/store.h"
#include "train/checkpoint.h"
#include "train/reshard.h"
#include "train/run_for_tests.h"

namespace flywheel::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class OffloadRun : public RunTraining {
 protected:
  void SetUp() override {
    RunTraining::SetUp();
    config_.mesh.zero = 3;
    config_.evaluate.every_steps = 0;
  }
  static OffloadConfig in_files(const std::string& folder) {
    return {.optimizer = OffloadDevice::kNvme,
            .parameters = OffloadDevice::kNvme,
            .path = folder,
            .sub_group_values = 1024,
            .buffers = 3};
  }
};

class FullOffloadRun : public OffloadRun {
 protected:
  void SetUp() override {
    OffloadRun::SetUp();
    if (const std::string why = disk_.mount(); !why.empty()) GTEST_SKIP() << why;
  }
  // The run ends, and says which disk is full and what to do.
  void expect_full(const TrainOptions& options, const TrainHooks& hooks) {
    const auto ended = run_training(config_, options, hooks);
    ASSERT_FALSE(ended.ok());
    EXPECT_EQ(ended.error().code, ErrorCode::kFull) << ended.error().message;
    EXPECT_THAT(ended.error().message,
                AllOf(HasSubstr("offload.path: " + config_.offload.path + " has no room for "),
                      HasSubstr("of optimizer state and f32 weights ("), HasSubstr("are free)"),
                      HasSubstr("make room there, and the same command goes on with the run")));
  }
  // What two files of each worker take: all that it needs as long as nobody holds one.
  int64_t two_files_each() {
    const TrainConfig own = config_;
    config_.snapshots.interval_s = 1000;
    int64_t used = 0;
    run({.on_step = [&](const Progress& p) {
      const auto space = std::filesystem::space(disk_.path());
      if (p.step == 1) used = static_cast<int64_t>(space.capacity - space.free);
    }});
    config_ = own;
    return used;
  }
  SmallDisk disk_{64 << 20};
};

// There is room for two files of each worker, and not for one more, which a step needs when a snapshot or a
// checkpoint holds one. Steps are held up, so that this comes before the last of them.
TEST_F(FullOffloadRun, EndsTheRunAndWithRoomTheSameCommandGoesOn) {
  config_.steps = 40;
  const TrainReport memory = run();
  config_.offload = in_files(disk_.path() + "/offload");
  const int64_t two_files = two_files_each();
  ASSERT_GT(two_files, 0);
  ASSERT_TRUE(disk_.fill(two_files + two_files / 8)) << "half of a file is too small for one";
  config_.snapshots.interval_s = 0.5;
  std::string id;
  int64_t last = 0;
  expect_full({.fresh = true}, {.on_start = [&](const std::string& run, int64_t, bool) { id = run; },
                                .on_step =
                                    [&](const Progress& p) {
                                      last = p.step;
                                      std::this_thread::sleep_for(std::chrono::milliseconds(100));
                                    }});
  EXPECT_LT(last, 40);
  ASSERT_TRUE(disk_.fill());  // what its workers had
  expect_full({}, {});        // their trainers cannot be made again
  disk_.clear();
  const TrainReport report = run({}, {});
  EXPECT_EQ(report.run, id);
  EXPECT_EQ(report.losses, memory.losses);
  EXPECT_EQ(report.sha256, memory.sha256);
  EXPECT_TRUE(list_folder(config_.offload.path).value().empty()) << "files have no names";
}

// Nothing has begun, and yet it is the run that the same command goes on with.
TEST_F(FullOffloadRun, IsNoEndOfARunThatHasNotBegun) {
  const TrainReport memory = run();
  config_.offload = in_files(disk_.path() + "/offload");
  ASSERT_TRUE(make_folders(config_.offload.path).ok());
  ASSERT_TRUE(disk_.fill());
  std::string id;
  expect_full({.fresh = true}, {.on_start = [&](const std::string& run, int64_t, bool) { id = run; }});
  expect_full({}, {});
  disk_.clear();
  const TrainReport report = run({}, {});
  EXPECT_EQ(report.run, id);
  EXPECT_EQ(report.losses, memory.losses);
  EXPECT_EQ(report.sha256, memory.sha256);
}

std::string checkpoint_of(const TrainReport& report, int64_t step) {
  return fmt::format("{}/checkpoints/step-{:08}", report.folder, step);
}
std::string artifact_of(const TrainReport& report, int64_t step) {
  const auto all = store::Store::open().value().list_artifacts({.kind = "checkpoint"}).value();
  for (const store::Artifact& artifact : all) {
    if (artifact.run == report.run && artifact.metadata.value("step", int64_t{0}) == step)
      return artifact.ref();
  }
  ADD_FAILURE() << report.run << " has no checkpoint of step " << step;
  return "";
}

// But for the config, which says where each had its state.
void expect_same_files(const std::string& folder, const std::string& other) {
  int64_t files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file() || entry.path().filename() == "config.yaml") continue;
    const std::string name = std::filesystem::relative(entry.path(), folder).generic_string();
    EXPECT_EQ(read_file(entry.path()).value(), read_file(other + "/" + name).value_or("not there")) << name;
    ++files;
  }
  EXPECT_GE(files, 4) << "checkpoint.json, the model's two, a shard";
}

// A checkpoint of a run in files is that of a run in memory: so is what is made of it for other meshes, and
// so are the runs that go on from it there, in memory or in files.
TEST_F(OffloadRun, ItsCheckpointsAreForAnyMesh) {
  const TrainReport memory = run();
  config_.offload = in_files(folder_ / "offload");
  const TrainReport files = run();
  EXPECT_EQ(files.sha256, memory.sha256);
  expect_same_files(checkpoint_of(memory, 10), checkpoint_of(files, 10));

  const TrainConfig own = config_;
  for (const MeshConfig& mesh :
       drawn(std::vector{MeshConfig{}, MeshConfig{.data = 3, .zero = 3, .threads = 1},
                         MeshConfig{.data = 2, .tensor = 2, .zero = 2, .threads = 1}},
             1)) {
    SCOPED_TRACE(fmt::format("data {}, tensor {}, zero {}", mesh.data, mesh.tensor, mesh.zero));
    config_ = own;
    config_.mesh = mesh, config_.offload = {};
    const std::string name = fmt::format("of-{}-{}", mesh.data, mesh.tensor);
    const std::string of_memory = folder_ / (name + "-memory"), of_files = folder_ / (name + "-files");
    ASSERT_TRUE(reshard_checkpoint(checkpoint_of(memory, 10), of_memory, config_, "x").ok());
    ASSERT_TRUE(reshard_checkpoint(checkpoint_of(files, 10), of_files, config_, "x").ok());
    expect_same_files(of_memory, of_files);

    config_.checkpoint.from = artifact_of(memory, 10);
    const TrainReport from_memory = run();
    EXPECT_EQ(from_memory.losses.size(), 20u);
    config_.checkpoint.from = artifact_of(files, 10);
    const TrainReport from_files = run();
    EXPECT_EQ(from_files.losses, from_memory.losses);
    EXPECT_EQ(from_files.sha256, from_memory.sha256);
    if (mesh.zero != 3) continue;
    config_.offload = own.offload;
    const TrainReport into_files = run();
    EXPECT_EQ(into_files.losses, from_memory.losses);
    EXPECT_EQ(into_files.sha256, from_memory.sha256);
  }
}

}  // namespace
}  // namespace flywheel::train
