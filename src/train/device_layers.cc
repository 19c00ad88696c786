#include "train/device_layers.h"

#include <algorithm>

namespace flywheel::train {
namespace {

using model::Op;
using model::Step;

// Takes steps one after another, each of which must be the next of a dense layer.
class Reader {
 public:
  explicit Reader(const model::Decoder& decoder) : steps_(decoder.steps) {}

  bool at(Op op) const { return next_ < steps_.size() && steps_[next_].op == op; }
  bool at_layer(int layer) const { return next_ < steps_.size() && steps_[next_].layer == layer; }
  const Step* take(Op op) {
    if (wrong_ != nullptr || !at(op)) {
      if (wrong_ == nullptr && next_ < steps_.size()) wrong_ = &steps_[next_];
      return nullptr;
    }
    return &steps_[next_++];
  }
  int weight_of(Op op) {
    const Step* step = take(op);
    return step == nullptr ? -1 : step->weight;
  }
  void linear(int& weight, int& bias) {
    if (const Step* step = take(Op::kLinear)) weight = step->weight, bias = step->bias;
  }
  const Step* wrong() const { return wrong_; }
  bool done() const { return wrong_ == nullptr && next_ == steps_.size(); }

 private:
  const std::vector<Step>& steps_;
  size_t next_ = 0;
  const Step* wrong_ = nullptr;
};

DeviceLayer read_layer(Reader& steps) {
  DeviceLayer layer;
  layer.attention_norm = steps.weight_of(Op::kRmsNorm);
  for (size_t i = 0; i < 3; ++i) steps.linear(layer.qkv[i], layer.qkv_bias[i]);
  if (steps.at(Op::kHeadNorm)) {
    layer.q_norm = steps.weight_of(Op::kHeadNorm);
    layer.k_norm = steps.weight_of(Op::kHeadNorm);
  }
  steps.take(Op::kRope), steps.take(Op::kRope);
  if (const Step* attention = steps.take(Op::kAttention)) layer.window = attention->window;
  steps.linear(layer.output, layer.output_bias);
  steps.take(Op::kAdd);
  layer.mlp_norm = steps.weight_of(Op::kRmsNorm);
  for (size_t i = 0; i < 2; ++i) steps.linear(layer.gate_up[i], layer.gate_up_bias[i]);
  steps.take(Op::kSwiglu);
  steps.linear(layer.down, layer.down_bias);
  steps.take(Op::kAdd);
  return layer;
}

}  // namespace

Result<DeviceLayers> device_layers(const model::Decoder& decoder) {
  DeviceLayers result;
  Reader steps(decoder);
  result.embedding = steps.weight_of(Op::kEmbed);
  for (int layer = 0; layer < decoder.config.num_layers && steps.at_layer(layer); ++layer)
    result.layers.push_back(read_layer(steps));
  result.final_norm = steps.weight_of(Op::kRmsNorm);
  result.head = steps.weight_of(Op::kLogits);
  if (steps.done()) return result;
  const Step* wrong = steps.wrong();
  return make_error(ErrorCode::kInvalid,
                    "device: a gpu runs dense layers alone, and this model has a step {}{}",
                    wrong == nullptr ? "more" : op_name(wrong->op),
                    wrong == nullptr || wrong->layer < 0 ? "" : fmt::format(" in layer {}", wrong->layer));
}

}  // namespace flywheel::train
