#include "train/device_network.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/rope.h"

namespace flywheel::train {

using kernels::MemoryKind;

namespace {

constexpr int64_t kF32 = 4;  // bytes

}  // namespace

DeviceNetwork::DeviceNetwork(kernels::Device& device, const model::Decoder& decoder,
                             const DeviceLayers& layers, const DeviceWeights& weights, const DevicePlan& plan,
                             DeviceState& state)
    : device_(device),
      kernels_(device.kernels()),
      config_(decoder.config),
      layers_(layers),
      weights_(weights),
      plan_(plan),
      state_(state) {}

Result<std::unique_ptr<DeviceNetwork>> DeviceNetwork::make(kernels::Device& device,
                                                           const model::Decoder& decoder,
                                                           const DeviceLayers& layers,
                                                           const DeviceWeights& weights,
                                                           const DevicePlan& plan, DeviceState& state) {
  std::unique_ptr<DeviceNetwork> network(new DeviceNetwork(device, decoder, layers, weights, plan, state));
  RETURN_IF_ERROR(network->allocate());
  return network;
}

Result<void> DeviceNetwork::allocate() {
  ASSIGN_OR_RETURN(activations_, device_.allocate(plan_.activation_bytes()));
  const kernels::RopeTable rope(model::rope_frequencies(config_), plan_.batch().length);
  return activations_.upload(rope.cos_row(0), rope.max_positions() * 2 * rope.half() * kF32, plan_.rope());
}

// As the kernels read it: targets that do not count are none, a sample's first position is 0.
Result<void> DeviceNetwork::bring(const Sequences& input) {
  CHECK(input.sequences <= plan_.batch().sequences && input.length <= plan_.batch().length,
        "{} sequences of {} where there is room for {} of {}", input.sequences, input.length,
        plan_.batch().sequences, plan_.batch().length);
  if (started_ == staging_.size()) {
    Staging& added = staging_.emplace_back();
    ASSIGN_OR_RETURN(added.inputs, device_.allocate(plan_.inputs().bytes, MemoryKind::kHost));
    ASSIGN_OR_RETURN(added.losses, device_.allocate(plan_.batch().rows() * kF32, MemoryKind::kHost));
  }
  Staging& staging = staging_[started_];
  const DevicePlan::Inputs& places = plan_.inputs();
  const auto values = [&](int64_t place) {
    return reinterpret_cast<int32_t*>(staging.inputs.as<std::byte>() + (place - places.ids));
  };
  int32_t *ids = values(places.ids), *targets = values(places.targets), *positions = values(places.positions);
  int32_t *begins = values(places.begins), *order = values(places.order), *run_end = values(places.run_end);
  const int64_t rows = input.sequences * input.length;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t sequence = row / input.length, t = row % input.length;
    const auto at = static_cast<size_t>(sequence * (input.length + 1) + t), r = static_cast<size_t>(row);
    ids[row] = input.tokens[at];
    CHECK(ids[row] >= 0 && ids[row] < config_.vocab_size, "token {} of a vocabulary of {}", ids[row],
          config_.vocab_size);
    const bool counts = input.counts.empty() || input.counts[r] != 0;
    targets[row] = counts ? input.tokens[at + 1] : kernels::kNoTarget;
    begins[row] = input.begins.empty() ? 0 : input.begins[r];
    positions[row] = static_cast<int32_t>(t) - begins[row];
  }
  kernels::token_order(order, run_end, ids, rows);
  return activations_.copy(staging.inputs, places.bytes, places.ids, 0);
}

Result<void> DeviceNetwork::train(const Sequences& input) {
  const Shape shape{.sequences = input.sequences, .length = input.length, .packed = !input.begins.empty()};
  RETURN_IF_ERROR(bring(input));
  Captured& captured = captured_[shape];
  if (captured.uses++ == 0) {
    run(shape, Pass::kTrain);  // and kernels of libraries are chosen
  } else {
    if (!captured.graph.has_value()) {
      ASSIGN_OR_RETURN(captured.graph, device_.capture([&] { run(shape, Pass::kTrain); }));
    }
    RETURN_IF_ERROR(captured.graph->launch());
  }
  return keep_losses(input.sequences * input.length);
}

Result<void> DeviceNetwork::keep_losses(int64_t rows) {
  Staging& staging = staging_[started_];
  RETURN_IF_ERROR(staging.losses.copy(activations_, rows * kF32, 0, plan_.losses()));
  staging.rows = rows;
  ++started_;
  return {};
}

Result<double> DeviceNetwork::take_losses() {
  RETURN_IF_ERROR(device_.synchronize());
  double sum = 0;
  for (size_t i = 0; i < started_; ++i) {
    const float* losses = staging_[i].losses.as<float>();
    sum += std::accumulate(losses, losses + staging_[i].rows, 0.0);
  }
  started_ = 0;
  return sum;
}

void DeviceNetwork::forget() {
  if (started_ > 0) (void)device_.synchronize();  // staging is free again; the error is the step's
  started_ = 0;
}

Result<double> DeviceNetwork::evaluate(const Sequences& input) {
  CHECK(started_ == 0, "microbatches of a step are under way");
  RETURN_IF_ERROR(bring(input));
  run({.sequences = input.sequences, .length = input.length, .packed = !input.begins.empty()},
      Pass::kEvaluate);
  RETURN_IF_ERROR(keep_losses(input.sequences * input.length));
  return take_losses();
}

void DeviceNetwork::run(const Shape& shape, Pass pass) {
  const int64_t T = shape.sequences * shape.length, D = config_.hidden_size;
  const kernels::DeviceStream stream = device_.stream();
  const int32_t* const ids = at<int32_t>(plan_.inputs().ids);
  kernels_.embedding(stream, bf16_at(plan_.layers()[0].in), ids, copy(layers_.embedding), T, D);
  for (size_t layer = 0; layer < layers_.layers.size(); ++layer) forward_layer(layer, shape);
  head(shape, pass);
  if (pass == Pass::kEvaluate) return;
  for (size_t layer = layers_.layers.size(); layer-- > 0;) backward_layer(layer, shape);
  kernels_.embedding_backward(stream, gradient(layers_.embedding), ids, at<int32_t>(plan_.inputs().order),
                              at<int32_t>(plan_.inputs().run_end), bf16_at(plan_.d_stream()), T, D);
}

}  // namespace flywheel::train
