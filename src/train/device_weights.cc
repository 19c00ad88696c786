#include "train/device_weights.h"

#include <algorithm>

#include "base/check.h"

namespace flywheel::train {
namespace {

constexpr int64_t kGroupAlignment = 64;  // values: 128 bytes of bf16

}  // namespace

DeviceWeights::DeviceWeights(const model::Decoder& decoder, const DeviceLayers& layers,
                             const OptimizerConfig& optimizer)
    : flat_(flat_weights(decoder)), offsets_(decoder.weights.size(), -1) {
  const auto add = [&](auto... weights) {
    const int group[] = {weights...};
    add_group(group, optimizer);
  };
  add(layers.embedding);
  if (layers.head != layers.embedding) add(layers.head);
  for (const DeviceLayer& layer : layers.layers) {
    add_group(layer.qkv, optimizer);
    add(layer.output);
    add_group(layer.gate_up, optimizer);
    add(layer.down);
  }
  for (const DeviceLayer& layer : layers.layers) {
    add(layer.attention_norm);
    add_group(layer.qkv_bias, optimizer);
    add(layer.q_norm), add(layer.k_norm), add(layer.output_bias), add(layer.mlp_norm);
    add_group(layer.gate_up_bias, optimizer);
    add(layer.down_bias);
  }
  add(layers.final_norm);
  count_ = padded_count(count_, kGroupAlignment);
  if (!segments_.empty()) segments_.back().end = count_;
  CHECK(std::ranges::none_of(offsets_, [](int64_t offset) { return offset < 0; }), "a weight has no place");
}

// A segment goes on through the zeros in front of a group that is updated alike.
void DeviceWeights::add_group(std::span<const int> group, const OptimizerConfig& optimizer) {
  if (group.front() < 0) return;
  count_ = padded_count(count_, kGroupAlignment);
  for (const int weight : group) {
    const FlatWeight& flat = flat_[static_cast<size_t>(weight)];
    offsets_[static_cast<size_t>(weight)] = count_;
    const WeightTerms terms = weight_terms(optimizer, flat);
    if (!segments_.empty()) segments_.back().end = count_;
    if (segments_.empty() || segments_.back().terms != terms)
      segments_.push_back({.begin = count_, .terms = terms});
    count_ += flat.count;
  }
  segments_.back().end = count_;
}

}  // namespace flywheel::train
