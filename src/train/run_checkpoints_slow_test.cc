// The checkpoints of whole runs: which are kept, what a full disk does to them, and going on from one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <thread>

#include "base/cases_for_tests.h"
#include "base/deadline.h"
#include "base/env.h"
#include "base/file.h"
#include "base/slowness_for_tests.h"
#include "store/store.h"
#include "train/checkpoint.h"
#include "train/run_for_tests.h"

namespace flywheel::train {
namespace {

// Checkpoints at 5, 10, 15, 20, 25 and 30: the last two stay, and the one of step 5, which somebody named.
TEST_F(RunTraining, KeepsTheLastCheckpointsAndThoseWithAliases) {
  config_.checkpoint = {.every_steps = 5, .keep = 2};
  auto store = store::Store::open().value();
  const TrainReport report = run({.on_step = [&](const Progress& p) {
    if (p.step == 12) {
      EXPECT_TRUE(store.set_alias("tiny-checkpoint:1", "best").ok());
    }
  }});
  std::vector<int64_t> steps;
  const auto kept = store.list_artifacts({.kind = "checkpoint"}).value();
  for (const auto& artifact : kept) {
    const std::string folder = store.path_of(artifact, store::Store::Verify::kYes).value();
    steps.push_back(read_checkpoint_info(folder).value().step);
  }
  EXPECT_THAT(steps, ::testing::UnorderedElementsAre(5, 25, 30));
  EXPECT_EQ(list_folder(report.folder + "/checkpoints").value(),
            (std::vector<std::string>{"step-00000025", "step-00000030"}));
  EXPECT_EQ(store.gc(store::Store::GcMode::kDryRun).value().blobs_removed, 0);  // nothing was left lying
  EXPECT_TRUE(store.verify().value().problems.empty());
}

// Another run's checkpoints of the same name are none of this run's business.
TEST_F(RunTraining, KeepsOtherRunsCheckpoints) {
  config_.checkpoint.keep = 1;
  const TrainReport first = run(), second = run();
  const auto kept = store::Store::open().value().list_artifacts({.kind = "checkpoint"}).value();
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_NE(kept[0].run, kept[1].run);
  EXPECT_EQ(first.sha256, second.sha256);
}

// A full disk as workers see it, the controller's own files left alone: no file of theirs may grow beyond
// this. They inherit that SIGXFSZ is ignored; what they write fails then, as it does without room.
void let_files_grow_to(rlim_t bytes, const Progress& p) {
  for (const int64_t pid : p.worker_pids) {
    const rlimit limit{bytes, RLIM_INFINITY};
    EXPECT_EQ(prlimit(static_cast<pid_t>(pid), RLIMIT_FSIZE, &limit, nullptr), 0) << strerror(errno);
  }
}
constexpr rlim_t kFull = 1000;

std::vector<int64_t> steps_of_checkpoints(const std::string& run) {
  std::vector<int64_t> steps;
  const auto all = store::Store::open().value().list_artifacts({.kind = "checkpoint"}).value();
  for (const store::Artifact& artifact : all)
    if (artifact.run == run) steps.push_back(artifact.metadata.value("step", int64_t{0}));
  std::ranges::sort(steps);
  return steps;
}

// Checkpoints at 10, 20 and 30; there is no room from step 5 to 25. That of step 10 has been given up by
// then, because the next one waits for it.
// For all workers, and for one of the two that write.
TEST_F(RunTraining, AFullDiskCostsCheckpointsAndNoMore) {
  ASSERT_NE(signal(SIGXFSZ, SIG_IGN), SIG_ERR);
  const TrainReport undisturbed = run();
  for (const bool for_all : drawn(std::vector<char>{true, false}, 1)) {
    const auto let_grow_to = [&](rlim_t bytes, Progress p) {
      if (!for_all) p.worker_pids = {p.worker_pids.at(1)};
      let_files_grow_to(bytes, p);
    };
    const TrainReport report = run({.on_step = [&](const Progress& p) {
      if (p.step == 5) let_grow_to(kFull, p);
      if (p.step == 25) let_grow_to(RLIM_INFINITY, p);
    }});
    EXPECT_EQ(report.sha256, undisturbed.sha256);
    EXPECT_EQ(report.losses, undisturbed.losses);
    const std::vector<int64_t> steps = steps_of_checkpoints(report.run);
    EXPECT_THAT(steps, ::testing::Not(::testing::Contains(10)));
    EXPECT_THAT(steps, ::testing::Contains(30));
    EXPECT_FALSE(path_exists(report.folder + "/checkpoints/step-00000010"))
        << "what was written of it is left";
  }
}

// As soon as something of a checkpoint's shards is there, one of its two writers is killed: between the
// shards, or while rank 0 makes the model of them. When it is the last one, rank 0 does nothing but wait for
// the part of the other, which is written by its replacement: soon, and not when a patience of minutes is
// over.
TEST_F(RunTraining, AWorkerKilledWhileACheckpointIsWrittenChangesNoBit) {
  config_.steps = 120;
  config_.evaluate.every_steps = 0;
  config_.checkpoint.every_steps = 40;
  const TrainReport undisturbed = run();
  const auto sha256_of = [](const TrainReport& report, int64_t step) {
    return read_checkpoint_info(fmt::format("{}/checkpoints/step-{:08}", report.folder, step)).value().sha256;
  };
  // A worker that does not go back with the others is given up after a minute.
  const auto expect_nothing_changes = [&](int64_t save, size_t victim) {
    SCOPED_TRACE(fmt::format("rank {} at save {}", victim, save));
    const int64_t step = 40 * save;
    std::string shards;
    std::jthread killer;
    const Stopwatch clock;
    const TrainReport killed =
        run({.on_start =
                 [&](const std::string& run, int64_t, bool) {
                   shards = fmt::format("{}/runs/{}/checkpoints/step-{:08}/shards/{}", env::home(), run, step,
                                        save);
                 },
             .on_step =
                 [&](const Progress& p) {
                   if (p.step != step - 10 || killer.joinable()) return;
                   killer = std::jthread([pid = static_cast<pid_t>(p.worker_pids.at(victim)), shards] {
                     const auto begun = [&] {
                       const auto names = list_folder(shards);
                       return names.ok() && !names->empty();
                     };
                     for (const Deadline end = Deadline::after_ms(60'000); !begun() && !end.expired();)
                       std::this_thread::sleep_for(std::chrono::milliseconds(1));
                     if (begun()) kill(pid, SIGKILL);
                   });
                 }});
    EXPECT_LT(clock.seconds(), 55 * kSlowness);
    EXPECT_GE(killed.recoveries, step < config_.steps ? 1 : 0);  // the run may be over a moment before
    EXPECT_EQ(killed.sha256, undisturbed.sha256);
    EXPECT_EQ(killed.losses, undisturbed.losses);
    EXPECT_EQ(sha256_of(killed, step), sha256_of(undisturbed, step));
    EXPECT_THAT(steps_of_checkpoints(killed.run), ::testing::ElementsAre(40, 80, 120));
    const auto names =
        list_folder(fmt::format("{}/checkpoints/step-{:08}/shards/{}", killed.folder, step, save)).value();
    EXPECT_EQ(names, (std::vector<std::string>{"rank-00000.state", "rank-00001.state"}));
  };
  using Kill = std::pair<int64_t, size_t>;
  for (const auto& [save, victim] : drawn(std::vector{Kill{1, 1}, Kill{1, 0}, Kill{3, 1}, Kill{3, 0}}, 2))
    expect_nothing_changes(save, victim);
}

// The last checkpoint has to be written: the run ends with an error, once because the disk is full and once
// because it is not even there; and a third time it goes well.
TEST_F(RunTraining, AFullDiskAtTheEndIsAnErrorThatResumeMends) {
  ASSERT_NE(signal(SIGXFSZ, SIG_IGN), SIG_ERR);
  const TrainReport undisturbed = run();
  std::string id;
  const auto expect_no_last_checkpoint = [&](const TrainOptions& options, const TrainHooks& hooks) {
    const auto failed = run_training(config_, options, hooks);
    ASSERT_FALSE(failed.ok());
    EXPECT_THAT(failed.error().message, ::testing::HasSubstr("the last checkpoint could not be written"));
    EXPECT_THAT(failed.error().message, ::testing::HasSubstr("flywheel train --resume " + id));
  };
  expect_no_last_checkpoint({.fresh = true},
                            {.on_start = [&](const std::string& run, int64_t, bool) { id = run; },
                             .on_step =
                                 [](const Progress& p) {
                                   if (p.step == 25) let_files_grow_to(kFull, p);
                                 }});
  const std::string checkpoints = env::home() + "/runs/" + id + "/checkpoints";
  ASSERT_EQ(rename(checkpoints.c_str(), (checkpoints + ".away").c_str()), 0);
  ASSERT_TRUE(write_file(checkpoints, "not a folder").ok());
  expect_no_last_checkpoint({.resume = id}, {});
  ASSERT_TRUE(remove_all(checkpoints).ok());
  ASSERT_EQ(rename((checkpoints + ".away").c_str(), checkpoints.c_str()), 0);
  const TrainReport resumed = run({}, {.resume = id});
  EXPECT_EQ(resumed.run, id);
  EXPECT_EQ(resumed.sha256, undisturbed.sha256);
  EXPECT_EQ(resumed.losses, undisturbed.losses);
  // On a busy machine step 20's may still be on its way to the disk when that is full.
  EXPECT_THAT(steps_of_checkpoints(id), ::testing::IsSupersetOf({10, 30}));
}

// The log and the watermarks are gone, a checkpoint is there: `--resume` goes on from it.
TEST_F(RunTraining, ACheckpointIsEnoughToGoOn) {
  const TrainReport undisturbed = run();
  const TrainReport resumed = run_from_checkpoint(26);
  EXPECT_LE(resumed.losses.size(),
            20u);  // from step 10 or 20: the later checkpoint may not have been complete
  EXPECT_EQ(resumed.sha256, undisturbed.sha256);
  EXPECT_THROW((void)run_training(config_, {.resume = resumed.run}, {}), UserError);  // finished
}

// A run that begins at another one's checkpoint, here on another mesh, and in the end on the first one's.
TEST_F(RunTraining, BeginsAtACheckpointOfAnyMesh) {
  const TrainReport undisturbed = run();
  auto store = store::Store::open().value();
  const auto checkpoints = store.list_artifacts({.kind = "checkpoint"}).value();
  std::string of_step_10;
  for (const store::Artifact& a : checkpoints) {
    if (a.metadata.value("step", 0) == 10) of_step_10 = a.ref();
  }
  ASSERT_FALSE(of_step_10.empty());
  config_.checkpoint.from = of_step_10;
  EXPECT_EQ(run().sha256, undisturbed.sha256);
  config_.mesh.zero = 3;
  const TrainReport other = run();
  ASSERT_EQ(other.losses.size(), 20u);
  for (size_t i = 0; i < other.losses.size(); ++i)  // bf16, and sums of microbatches in another order
    EXPECT_NEAR(other.losses[i], undisturbed.losses[i + 10], 1e-2 * undisturbed.losses[i + 10]);
}

}  // namespace
}  // namespace flywheel::train
