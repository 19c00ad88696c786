// The trainer of a model that lies in a device's memory (device: gpu): the contract, the state and the
// decisions of trainer.h, for what device_config.h allows.
//
// f32 masters, both moments, f32 gradients and bf16 copies of the masters lie in flat buffers of the device
// (device_weights.h), 18 bytes a weight. A step is started without a wait: gradients of all microbatches, the
// norm, the clipping that follows from it and the update, which the device leaves out where the norm is not
// finite; then losses and norm are read. Where there are several data ranks their gradients are summed on the
// way, through main memory, in rank order; and with guard.on_spike the norm and the losses are read before
// the update is started, as the guard decides by its history.
//
// Snapshots are the bytes that a trainer in main memory makes of the same state: each goes on from the
// other's, with other last bits.
//
// Ownership: owns model and state; borrows layout, pool and device. Threads: one at a time.
//
//   ASSIGN_OR_RETURN(auto trainer, DeviceTrainer::open(config, layout, place, pool));   // on a GPU
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"
#include "train/any_trainer.h"
#include "train/device_network.h"
#include "train/device_update.h"

namespace flywheel::train {

class DeviceTrainer final : public AnyTrainer {
 public:
  // On the GPU of this process (device_of_process.h). kUnavailable: there is none; kFull: its memory is too
  // small, with what would fit.
  static Result<std::unique_ptr<DeviceTrainer>> open(const TrainConfig& config, const Layout& layout,
                                                     const MeshPlace& place, ThreadPool& pool);
  static Result<std::unique_ptr<DeviceTrainer>> open(const TrainConfig& config, const Layout& layout,
                                                     const MeshPlace& place, ThreadPool& pool,
                                                     kernels::Device& device);

  void initialize(uint64_t seed) override;
  Result<void> load(const model::WeightSource& source) override;
  Result<StepResult> step(const data::Batch& batch, const Links& links) override;
  Result<double> evaluate(const data::Sampler& sampler, int64_t samples, const Links& links) override;
  using AnyTrainer::snapshot;
  void snapshot(TrainerSnapshot& into) override;
  void snapshot(const Shares& shares, TrainerSnapshot& into) override;
  Result<void> restore(std::string_view bytes) override;
  Result<void> restore_whole(WholeState& whole) override;
  std::string sha256() override;

  const DevicePlan& plan() const { return plan_; }

 private:
  DeviceTrainer(const TrainConfig& config, const Layout& layout, const MeshPlace& place, ThreadPool& pool,
                kernels::Device& device, DeviceLayers layers);
  Result<void> allocate();
  Result<void> start_gradients(const data::Batch& batch, Links& links);
  Result<void> sum_gradients(Links& links);
  OptimizerStep optimizer_step(double lr) const;
  // The pieces `held` of the weights, and their state, into a snapshot of `count` values.
  void take_snapshot(const std::vector<FlatWeight>& held, int64_t count, TrainerSnapshot& into);
  // Other weights and state, which `fill(weights, state)` puts where they are told.
  template <typename Fill>
  Result<void> take_values(const Fill& fill);
  Result<void> put(int weight, std::span<const float> values);
  void make_copies();  // starts it

  const Layout& layout_;
  LocalDecoder local_;
  Shares shares_;  // as a trainer in main memory lays its snapshots out
  ThreadPool& pool_;
  kernels::Device& device_;
  DeviceLayers layers_;
  DeviceWeights weights_;
  DevicePlan plan_;
  DeviceState state_;
  DeviceUpdate update_;
  std::unique_ptr<DeviceNetwork> network_;
  kernels::DeviceBuffer exchanged_;  // pinned: gradients on their way through main memory
};

}  // namespace flywheel::train
