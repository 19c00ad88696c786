// A dense decoder's forward and backward on a device, written out kernel by kernel over memory that is laid
// out once (device_plan.h). What it computes is what the steps of model/decoder.h say; how it rounds is what
// PyTorch does with a bf16 copy of f32 masters (FSDP's mixed precision): products read bf16 and sum in f32,
// values between kernels and the residual stream are bf16, norms, softmax, losses and the gradients of
// weights are f32.
//
// The work of a microbatch of a shape is started kernel by kernel the first time, captured as one CUDA graph
// the second, and launched from then on. Nothing waits for the device but evaluate() and take_losses().
// Logits exist for some rows at a time, and their gradient takes their place.
//
// Ownership: borrows the device, the decoder and the buffers of the state, owns the activations. Threads: one
// at a time. Errors: kFull where the device's memory is too small; the device's own at the next wait.
//
//   ASSIGN_OR_RETURN(auto network, DeviceNetwork::make(device, decoder, layers, weights, plan, state));
//   RETURN_IF_ERROR(network->train(microbatch));               // adds to state.gradients
//   ASSIGN_OR_RETURN(const double loss, network->take_losses());
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "kernels/device.h"
#include "train/device_plan.h"
#include "train/device_state.h"
#include "train/device_weights.h"
#include "train/network.h"

namespace flywheel::train {

class DeviceNetwork {
 public:
  static Result<std::unique_ptr<DeviceNetwork>> make(kernels::Device& device, const model::Decoder& decoder,
                                                     const DeviceLayers& layers, const DeviceWeights& weights,
                                                     const DevicePlan& plan, DeviceState& state);

  // Starts a microbatch of at most the plan's sequences and length: adds the gradient of the sum of the
  // losses of all tokens that count to state.gradients.
  Result<void> train(const Sequences& input);
  // The sum of the losses of all microbatches since the last call, in nats, in order of their rows. Waits.
  Result<double> take_losses();
  void forget();  // the losses of microbatches so far
  // The same sum without gradients. Waits.
  Result<double> evaluate(const Sequences& input);

 private:
  // The shape that a graph is of.
  struct Shape {
    int64_t sequences = 0, length = 0;
    bool packed = false;
    auto operator<=>(const Shape&) const = default;
  };
  struct Captured {
    int64_t uses = 0;
    std::optional<kernels::DeviceGraph> graph;
  };
  enum class Pass : uint8_t { kTrain, kEvaluate };

  DeviceNetwork(kernels::Device& device, const model::Decoder& decoder, const DeviceLayers& layers,
                const DeviceWeights& weights, const DevicePlan& plan, DeviceState& state);
  Result<void> allocate();
  Result<void> bring(const Sequences& input);  // into inputs_
  Result<void> keep_losses(int64_t rows);      // of the microbatch at hand, on the way to the host

  // Kernels of one microbatch, in order.
  void run(const Shape& shape, Pass pass);
  void compute_layer(size_t layer, const Shape& shape);
  void forward_layer(size_t layer, const Shape& shape);
  void backward_layer(size_t layer, const Shape& shape);
  void attend(size_t layer, const Shape& shape);
  void attend_backward(size_t layer, const Shape& shape);
  void head(const Shape& shape, Pass pass);
  kernels::DeviceAttention attention_of(size_t layer, const Shape& shape);
  void product(kernels::bf16* y, const kernels::bf16* x, int weight, int bias, int64_t T, int64_t N,
               int64_t K);
  void product_backward(kernels::bf16* dx, const kernels::bf16* dy, const kernels::bf16* x, int weight,
                        int bias, int64_t T, int64_t N, int64_t K);
  void product_weights_backward(const kernels::bf16* dy, const kernels::bf16* x, int weight, int bias,
                                int64_t T, int64_t N, int64_t K);
  // Arguments are places in the activations.
  void norm(int64_t y, int64_t inverse, int64_t x, int weight, int64_t T);
  void add_and_norm(int64_t y, int64_t inverse, int64_t sum, int64_t x, int64_t delta, int weight, int64_t T);
  void norm_backward(int64_t inverse, int64_t x, int weight, int64_t T);

  template <typename T>
  T* at(int64_t place) {
    return reinterpret_cast<T*>(activations_.as<std::byte>() + place);
  }
  float* row_sums() { return at<float>(plan_.row_sums()); }
  kernels::bf16* bf16_at(int64_t place) { return at<kernels::bf16>(place); }
  const kernels::bf16* copy(int weight) const {
    return state_.copies.as<kernels::bf16>() + weights_.offset(weight);
  }
  const float* master(int weight) const { return state_.masters.as<float>() + weights_.offset(weight); }
  float* gradient(int weight) { return state_.gradients.as<float>() + weights_.offset(weight); }

  kernels::Device& device_;
  const kernels::DeviceTable& kernels_;
  const model::DecoderConfig config_;
  const DeviceLayers layers_;
  const DeviceWeights& weights_;
  const DevicePlan plan_;
  DeviceState& state_;
  kernels::DeviceBuffer activations_;
  // Pinned: of each microbatch of a step what goes there and comes back, until the step is over.
  struct Staging {
    kernels::DeviceBuffer inputs, losses;
    int64_t rows = 0;  // whose losses are on their way
  };
  std::vector<Staging> staging_;
  size_t started_ = 0;  // microbatches since take_losses()
  std::map<Shape, Captured> captured_;
};

}  // namespace flywheel::train
