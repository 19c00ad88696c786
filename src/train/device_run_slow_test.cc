// Whole runs with device: gpu, of workers whose device is emulated: what the runtime does with a trainer that
// lies on a device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "kernels/device.h"
#include "train/run_for_tests.h"

namespace flywheel::train {
namespace {

class DeviceRun : public RunTraining {
 protected:
  void SetUp() override {
    RunTraining::SetUp();
    config_.model.vocab_size = 104;                               // a multiple of 8
    config_.model.num_heads = 2, config_.model.num_kv_heads = 1;  // of 16
  }
  // Its workers inherit what the environment says.
  TrainReport run_on_device(const TrainHooks& hooks = {}) {
    setenv("FLYWHEEL_TEST_DEVICE", "emulated", 1);
    config_.device = DeviceChoice::kGpu;
    TrainReport report = run(hooks);
    config_.device = DeviceChoice::kCpu;
    unsetenv("FLYWHEEL_TEST_DEVICE");
    return report;
  }
};

TEST_F(DeviceRun, LearnsAsOnCpuAndAKilledWorkerChangesNoBit) {
  config_.steps = 12;
  const TrainReport undisturbed = run_on_device();
  const TrainReport on_cpu = run();
  ASSERT_EQ(undisturbed.losses.size(), on_cpu.losses.size());
  // At a rate of 5e-3 what differs in last bits goes its own way after some updates.
  for (size_t i = 0; i < on_cpu.losses.size(); ++i)
    EXPECT_NEAR(undisturbed.losses[i], on_cpu.losses[i], i < 8 ? 2e-2 : 0.1) << i;
  EXPECT_NEAR(undisturbed.validation_loss, on_cpu.validation_loss, 0.05);
  EXPECT_LT(undisturbed.losses.back(), undisturbed.losses.front() - 0.2) << "it learns";
  int kills = 0;
  const TrainReport killed = run_on_device({.on_step = [&](const Progress& p) {
    if ((p.step == 5 && kills == 0) || (p.step == 9 && kills == 1)) {
      kill(static_cast<pid_t>(p.worker_pids.at(static_cast<size_t>(kills++))), SIGKILL);
    }
  }});
  EXPECT_GE(killed.recoveries, 2);
  EXPECT_EQ(killed.sha256, undisturbed.sha256);
  EXPECT_EQ(killed.losses, undisturbed.losses);
  EXPECT_EQ(killed.evaluation_losses, undisturbed.evaluation_losses);
}

// A checkpoint that a device made is gone on from in main memory, and the other way.
TEST_F(DeviceRun, CheckpointsAreTheSameOnBothSides) {
  config_.steps = 6;
  config_.schedule.type = ScheduleType::kConstant;  // of as many steps as there are
  const TrainReport device = run_on_device();
  config_.steps = 12;
  config_.checkpoint.from = device.checkpoint;
  const TrainReport cpu = run();
  EXPECT_EQ(cpu.losses.size(), 6u);
  EXPECT_LT(cpu.losses.back(), device.losses.back());
  config_.steps = 18;
  config_.checkpoint.from = cpu.checkpoint;
  const TrainReport again = run_on_device();
  EXPECT_EQ(again.losses.size(), 6u);
  EXPECT_LT(again.losses.back(), cpu.losses.back() + 0.05);
}

TEST_F(DeviceRun, WithoutAGpuItSaysSo) {
  if (kernels::device_count() > 0) GTEST_SKIP() << "a GPU is here";
  config_.device = DeviceChoice::kGpu;
  try {
    (void)run_training(config_, {.fresh = true}, {});
    FAIL() << "it ran";
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), testing::StartsWith("device: gpu: "));
  }
}

}  // namespace
}  // namespace flywheel::train
