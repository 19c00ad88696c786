// Whole runs whose workers or controller die on the way: the same bits every time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "base/cases_for_tests.h"
#include "base/file.h"
#include "base/slowness_for_tests.h"
#include "store/store.h"
#include "train/run_for_tests.h"

namespace flywheel::train {
namespace {

TEST_F(RunTraining, AKilledWorkerChangesNoBit) {
  const TrainReport undisturbed = run();
  int kills = 0;
  const TrainReport killed = run({.on_step = [&](const Progress& p) {
    if ((p.step == 8 && kills == 0) || (p.step == 19 && kills == 1)) {
      kill(static_cast<pid_t>(p.worker_pids.at(static_cast<size_t>(kills++))), SIGKILL);
    }
  }});
  EXPECT_GE(killed.recoveries, 2);
  EXPECT_GT(killed.recovery_seconds, 0);
  EXPECT_LT(killed.recovery_seconds, 5 * kSlowness) << "of the last, until replay begins";
  EXPECT_GT(killed.lost_seconds, killed.recovery_seconds) << "of all of them, until all is computed again";
  EXPECT_LT(killed.lost_seconds, 5 * killed.recoveries * kSlowness);
  EXPECT_EQ(killed.sha256, undisturbed.sha256);
  EXPECT_EQ(killed.losses, undisturbed.losses);
  EXPECT_EQ(killed.evaluation_losses, undisturbed.evaluation_losses);
}

// Without a snapshot all is done again.
TEST_F(RunTraining, ALossLeavesWhatItCost) {
  config_.snapshots.interval_s = 1000;
  bool killed = false;
  const TrainReport report = run({.on_step = [&](const Progress& p) {
    if (p.step < 12 || killed) return;
    killed = true;
    kill(static_cast<pid_t>(p.worker_pids.at(1)), SIGKILL);
  }});
  EXPECT_EQ(report.recoveries, 1);
  auto store = store::Store::open().value();
  const auto only = [&](const char* metric) {
    const auto points = store.metric(report.run, metric).value();
    EXPECT_EQ(points.size(), 1u) << metric;
    EXPECT_GE(points.at(0).step, 12);
    return points.at(0).value;
  };
  EXPECT_EQ(only("recovery_lost_seconds"), report.lost_seconds);
  EXPECT_GE(report.lost_seconds, report.recovery_seconds);
  EXPECT_LT(report.lost_seconds, 5 * kSlowness);
  EXPECT_GT(report.recovery_seconds, 0);
  EXPECT_EQ(only("recovery_steps"), static_cast<double>(report.steps_done_again));
  EXPECT_GE(report.steps_done_again, 12);
  EXPECT_LE(report.steps_done_again, 30);
  EXPECT_EQ(only("recovery_from_disk"), 0) << "there was no snapshot at all";
  EXPECT_EQ(only("snapshot_interval_seconds"), 1000);
  EXPECT_EQ(only("young_interval_seconds"), 0) << "no snapshot has shown what one costs";
}

// Twice as long as the default allows; the other worker waits for it in a collective.
TEST_F(RunTraining, AWorkerThatPausesIsNotLostBeforeItsTime) {
  config_.heartbeat_timeout_s = 60;
  std::jthread wakes_it_up;
  const TrainReport report = run({.on_step = [&](const Progress& p) {
    if (p.step != 12) return;
    const auto pid = static_cast<pid_t>(p.worker_pids.at(1));
    ASSERT_EQ(kill(pid, SIGSTOP), 0);
    wakes_it_up = std::jthread([pid] {
      std::this_thread::sleep_for(std::chrono::milliseconds(1600));
      kill(pid, SIGCONT);
    });
  }});
  EXPECT_EQ(report.recoveries, 0);
  EXPECT_EQ(report.losses.size(), 30u);
  EXPECT_GT(report.seconds, 1.6);
}

// The processes that this program has started itself.
std::vector<pid_t> own_children() {
  std::vector<pid_t> pids;
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream children(thread.path() / "children");
    for (pid_t pid = 0; children >> pid;) pids.push_back(pid);
  }
  return pids;
}

// More losses at one step than any other command is allowed.
TEST_F(RunTraining, AWorkerKilledAgainAndAgainAtOneStepChangesNoBit) {
  config_.steps = 250;
  config_.evaluate.every_steps = 0;
  const TrainReport undisturbed = run();
  std::jthread killer;
  const TrainReport killed = run({.on_step = [&](const Progress& p) {
    if (p.step != 6 || killer.joinable()) return;
    killer = std::jthread([] {
      for (int kill_number = 0; kill_number < 8; ++kill_number) {
        if (const std::vector<pid_t> pids = own_children(); !pids.empty()) kill(pids.back(), SIGKILL);
        std::this_thread::sleep_for(std::chrono::milliseconds(250));
      }
    });
  }});
  EXPECT_GE(killed.recoveries, 3);
  EXPECT_EQ(killed.sha256, undisturbed.sha256);
}

// What a snapshot could forget of each optimizer and precision, on meshes that replicate state and that cut
// it.
struct Method {
  const char* name;
  const char* yaml;
  int64_t data, tensor, pipeline;
  int64_t zero = 0, zero_group = 0, context = 1;
};
void PrintTo(const Method& method, std::ostream* out) {
  *out << method.name;
}
class Methods : public RunTraining, public ::testing::WithParamInterface<Method> {};

TEST_P(Methods, KilledWorkersAndALostLogChangeNoBit) {
  if (!is_drawn(4)) GTEST_SKIP() << kNotDrawn;
  const Method& method = GetParam();
  auto config = parse_config<TrainConfig>("method", method.yaml);
  config.name = config_.name, config.data = config_.data, config.model = config_.model;
  config.batch = config_.batch;
  config.steps = 20;
  config.model.hidden_size = 64, config.model.num_layers = 2;  // large enough for 8-bit state
  config.batch.micro_sequences = 1;
  config.optimizer.warmup_steps = 5;
  config.mesh = {.data = method.data,
                 .context = method.context,
                 .tensor = method.tensor,
                 .pipeline = method.pipeline,
                 .zero = method.zero,
                 .zero_group = method.zero_group,
                 .threads = 1};
  config.checkpoint.every_steps = 8;
  config_ = config;
  const TrainReport undisturbed = run();
  size_t kills = 0;
  const TrainReport killed = run({.on_step = [&](const Progress& p) {
    if ((p.step == 6 && kills == 0) || (p.step == 14 && kills == 1)) {
      kill(static_cast<pid_t>(p.worker_pids.at(kills++ % p.worker_pids.size())), SIGKILL);
    }
  }});
  EXPECT_GE(killed.recoveries, 2);
  EXPECT_EQ(killed.sha256, undisturbed.sha256);
  EXPECT_EQ(killed.losses, undisturbed.losses);
  EXPECT_LT(killed.loss, killed.losses[0]);
  const TrainReport resumed = run_from_checkpoint(18);
  EXPECT_LE(resumed.losses.size(), 12u);
  EXPECT_EQ(resumed.sha256, undisturbed.sha256);
  if (config_.precision != Precision::kFP16) return;
  auto store = store::Store::open().value();
  std::set<double> scales;
  const std::vector<store::MetricPoint> points = store.metric(killed.run, "loss_scale").value();
  for (const store::MetricPoint& point : points) scales.insert(point.value);
  EXPECT_GT(scales.size(), 2u);  // steps were skipped, and the scale came back
}

INSTANTIATE_TEST_SUITE_P(
    All, Methods,
    ::testing::Values(
        Method{"adam", "{optimizer: {type: adam, lr: 5e-3, ema_decay: 0.9}, precision: f32}", 2, 1, 1},
        Method{"sgd", "{optimizer: {type: sgd, lr: 0.1}, schedule: {type: constant}}", 1, 2, 1},
        Method{"lion", "{optimizer: {type: lion, lr: 1e-3}, schedule: {type: wsd}}", 1, 1, 2},
        Method{"adafactor", "{optimizer: {type: adafactor, lr: 0.1, adafactor: {beta1: 0.9}}}", 1, 2, 1},
        Method{"muon", "{optimizer: {type: muon, lr: 5e-3, ema_decay: 0.9}}", 1, 2, 2},
        Method{"muon_zero", "{optimizer: {type: muon, lr: 5e-3, ema_decay: 0.9}}", 2, 2, 1, 2},
        Method{"adafactor_zero", "{optimizer: {type: adafactor, lr: 0.1}}", 3, 1, 1, 1},
        Method{"adamw_8bit", "{optimizer: {type: adamw_8bit, lr: 5e-3}}", 1, 1, 2},
        Method{"no_masters", "{optimizer: {lr: 5e-3, masters: none}}", 2, 1, 1},
        Method{"no_masters_zero", "{optimizer: {lr: 5e-3, masters: none, ema_decay: 0.9}}", 2, 1, 1, 2},
        Method{"fp16",
               "{precision: fp16, optimizer: {lr: 5e-3}, loss_scale: {initial_power: 26, window: 3, "
               "hysteresis: 1}}",
               2, 2, 1},
        Method{"fp8", "{precision: fp8, optimizer: {lr: 5e-3}}", 2, 1, 1},
        Method{"zero1", "{optimizer: {type: adamw_8bit, lr: 5e-3}}", 3, 1, 1, 1},
        Method{"zero2", "{optimizer: {type: lion, lr: 1e-3, ema_decay: 0.9}}", 2, 2, 1, 2},
        Method{"zero3", "{precision: f32, optimizer: {lr: 5e-3}, recompute: true}", 2, 1, 2, 3},
        Method{"groups", "{optimizer: {lr: 5e-3}}", 4, 1, 1, 1, 2},
        Method{"context", "{optimizer: {lr: 5e-3}}", 1, 1, 1, 0, 0, 2},
        Method{"context_zero", "{precision: f32, optimizer: {lr: 5e-3}, recompute: true}", 1, 2, 1, 3, 0, 2}),
    [](const auto& info) { return info.param.name; });

TEST_F(RunTraining, AControllerThatDiesIsTakenUpAgain) {
  config_.precision = Precision::kF32;
  config_.checkpoint = {.every_steps = 4,
                        .keep = 1};  // what the first lives recorded is given up by later ones
  const TrainReport undisturbed = run();
  int lives = 0;
  for (const int64_t last : {7, 18}) {
    EXPECT_THROW(
        run({.on_start = [&](const std::string&, int64_t, bool resumed) { EXPECT_EQ(resumed, lives > 0); },
             .on_step =
                 [&](const Progress& p) {
                   if (p.step == last) throw ControllerDies();
                 }},
            {.fresh = lives == 0}),
        ControllerDies);
    ++lives;
  }
  const TrainReport finished = run({}, {});
  EXPECT_EQ(finished.sha256, undisturbed.sha256);
  EXPECT_EQ(finished.losses, undisturbed.losses);
  EXPECT_EQ(finished.taken_up, 2);
  EXPECT_NE(finished.run, undisturbed.run);
  EXPECT_EQ(store::Store::open().value().list_artifacts({.kind = "checkpoint"}).value().size(), 2u);
}

// No snapshot is made, so that each life does all steps again that those before it did.
TEST_F(RunTraining, WhatTakingARunUpCostsIsCountedOverAllItsLives) {
  config_.snapshots.interval_s = 1000;
  for (const int64_t last : {7, 18}) {
    const auto dies = [&](const Progress& p) {
      if (p.step == last) throw ControllerDies();
    };
    EXPECT_THROW(run({.on_step = dies}, {.fresh = last == 7}), ControllerDies);
  }
  const TrainReport report = run({}, {});
  EXPECT_EQ(report.taken_up, 2);
  EXPECT_EQ(report.recoveries, 0) << "no worker was lost";
  EXPECT_GE(report.steps_done_again, 7 + 18);
  EXPECT_LE(report.steps_done_again, 7 + 18 + 2 * 3) << "a few more may have been under way";
  auto store = store::Store::open().value();
  const auto times = store.metric(report.run, "taken_up").value();
  const auto steps = store.metric(report.run, "taken_up_steps").value();
  ASSERT_EQ(times.size(), 2u);
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(times[0].value, 1);
  EXPECT_EQ(times[1].value, 2);
  EXPECT_GE(times[0].step, 7);
  EXPECT_GE(times[1].step, 18);
  EXPECT_EQ(steps[0].value + steps[1].value, static_cast<double>(report.steps_done_again));
  EXPECT_EQ(run().taken_up, 0);
}

class RunInFiles : public RunTraining {
 protected:
  // Two workers are killed; then a run begins at a checkpoint. `memory`: the same run with all in memory.
  void expect_kills_change_nothing(const TrainReport& memory) {
    size_t kills = 0;
    const TrainReport killed = run({.on_step = [&](const Progress& p) {
      if ((p.step == 8 && kills == 0) || (p.step == 19 && kills == 1)) {
        kill(static_cast<pid_t>(p.worker_pids.at(kills++)), SIGKILL);
      }
    }});
    EXPECT_GE(killed.recoveries, 2);
    EXPECT_EQ(killed.sha256, memory.sha256);
    EXPECT_EQ(killed.losses, memory.losses);
    EXPECT_EQ(run_from_checkpoint(14).sha256, memory.sha256);
    EXPECT_TRUE(list_folder(folder_ / "offload").value().empty()) << "whoever is killed leaves no file";
  }
};

// Optimizer state in files: a killed run has the bits of one that nobody killed, and of one with the state in
// memory.
TEST_F(RunInFiles, StateOutlivesTheKillsOfWorkers) {
  config_.mesh.zero = 2;
  const TrainReport memory = run();
  config_.offload = {
      .optimizer = OffloadDevice::kNvme, .path = folder_ / "offload", .sub_group_values = 1024, .buffers = 3};
  const TrainReport files = run();
  EXPECT_EQ(files.sha256, memory.sha256);
  expect_kills_change_nothing(memory);
}

// And parameters in files: neither kills nor a checkpoint that a run begins at tell it from a run in memory.
TEST_F(RunInFiles, ParametersOutliveTheKillsOfWorkers) {
  config_.mesh.zero = 3;
  const TrainReport memory = run();
  config_.offload = {.optimizer = OffloadDevice::kNvme,
                     .parameters = OffloadDevice::kNvme,
                     .path = folder_ / "offload",
                     .sub_group_values = 1024,
                     .buffers = 3};
  EXPECT_EQ(run().sha256, memory.sha256);
  expect_kills_change_nothing(memory);
}

}  // namespace
}  // namespace flywheel::train
