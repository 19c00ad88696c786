// The end of a step on a device: the gradient's norm, the clipping that follows from it, and AdamW's or
// Adam's update of all weights, without a wait between them.
//
// What differs from step to step lies in device memory (kernels::StepTerms). Weights whose rates or betas
// differ (optimizer.groups) are updated one set after another; what decays and what does not goes together.
//
// Ownership: owns what it brings to the device and back. Threads: one at a time. Errors: the device's.
//
//   RETURN_IF_ERROR(update.start_norm(state, {.lr = lr, .update = updates}, targets));
//   update.start(state);                           // leaves weights as they are where the norm is not finite
//   ASSIGN_OR_RETURN(const double norm, update.norm());
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "kernels/device.h"
#include "train/device_state.h"
#include "train/device_weights.h"

namespace flywheel::train {

class DeviceUpdate {
 public:
  DeviceUpdate(const OptimizerConfig& config, const DeviceWeights& weights);
  Result<void> allocate(kernels::Device& device);

  // Starts the norm of state.gradients over `targets`, with what start() will read.
  Result<void> start_norm(DeviceState& state, const OptimizerStep& step, double targets);
  void start(DeviceState& state);
  // Before clipping. Waits.
  Result<double> norm();

 private:
  // Weights with the same rate and betas.
  struct Set {
    WeightTerms terms;
    std::vector<kernels::AdamWPiece> pieces;
    int64_t first_piece = 0;  // on the device
  };
  // Places in on_device_, in bytes.
  int64_t terms_at(size_t set) const;
  int64_t pieces_at() const { return terms_at(sets_.size()); }

  OptimizerConfig config_;
  int64_t count_;  // of values
  std::vector<Set> sets_;
  kernels::Device* device_ = nullptr;
  kernels::DeviceBuffer on_device_;  // terms of each set, then pieces
  kernels::DeviceBuffer norm_, workspace_;
  kernels::DeviceBuffer terms_here_, norm_here_;  // pinned, of the step at hand
};

}  // namespace flywheel::train
