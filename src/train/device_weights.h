// Where weights lie in a device's flat buffers (f32 masters, gradients, both moments, and the bf16 copies
// that products read): another order than a snapshot's (flat_weights.h), so that what one kernel reads lies
// together. Matrices come first, then norms and biases, so that few launches update what decays and what does
// not; of a layer q, k and v are the rows of one matrix, and so are gate and up. What begins a group begins
// at a multiple of 64 values, with zeros between.
//
// Pure functions, any thread.
//
//   const DeviceWeights weights(decoder, layers, config.optimizer);
//   masters + weights.offset(layer.qkv[0])                         // [(Hq + 2 Hkv) * head_dim, hidden]
//   for (const DeviceSegment& s : weights.segments()) { ...one update of [s.begin, s.end)... }
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "train/device_layers.h"
#include "train/flat_weights.h"
#include "train/optimizer.h"

namespace flywheel::train {

// Values that are updated alike.
struct DeviceSegment {
  int64_t begin = 0, end = 0;
  WeightTerms terms;
};

class DeviceWeights {
 public:
  DeviceWeights(const model::Decoder& decoder, const DeviceLayers& layers, const OptimizerConfig& optimizer);

  int64_t count() const { return count_; }  // values of each buffer
  int64_t offset(int weight) const { return offsets_[static_cast<size_t>(weight)]; }
  // Those of a snapshot, by weight.
  const std::vector<FlatWeight>& flat() const { return flat_; }
  const std::vector<DeviceSegment>& segments() const { return segments_; }

 private:
  void add_group(std::span<const int> group, const OptimizerConfig& optimizer);

  std::vector<FlatWeight> flat_;
  std::vector<int64_t> offsets_;  // by weight; -1 until it is added
  std::vector<DeviceSegment> segments_;
  int64_t count_ = 0;
};

}  // namespace flywheel::train
