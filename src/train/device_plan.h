// Where everything lies in a device's memory, and how many bytes that is: known before any of it is
// allocated.
//
// What a layer keeps of a microbatch of T tokens for its gradient, in bf16, of widths D (hidden), W = Q + 2 K
// (q, k and v), Q (heads of q together) and F (hidden units):
//
//   in         D   the residual stream before the layer
//   normed     D   what q, k and v are products of; with recompute norm one for all layers
//   qkv        W   q and k rotated; with head norms as they were before these
//   qk       Q+K   with head norms: q and k as attention reads them
//   heads      Q   attention's output; of it also f32 log-sums, one for each head
//   middle     D   the residual stream before the MLP
//   mlp_normed D   what gate and up are products of; with recompute norm one for all layers
//   gate_up   2F
//   hidden     F   SwiGLU's output; with recompute swiglu one for all layers
//
// and in f32 one number for each norm and token. With recompute full a layer keeps `in` alone, and all layers
// share one set of the rest. Logits exist for some rows at a time, in the place of what a layer's backward
// needs.
//
// A value, any thread.
//
//   const DevicePlan plan(decoder, weights, {.sequences = 8, .length = 1024}, recompute);
//   if (plan.bytes() > device.free_bytes()) ...
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "train/device_weights.h"
#include "train/recompute.h"

namespace flywheel::train {

// Sequences of a microbatch, at most.
struct DeviceBatchSize {
  int64_t sequences = 1, length = 1;
  int64_t rows() const { return sequences * length; }
};

class DevicePlan {
 public:
  // Places in the activations' memory, in bytes.
  struct Kept {
    int64_t in = 0, inverse = 0, normed = 0, qkv = 0, qk_inverse = 0, qk = 0, heads = 0, log_sums = 0;
    int64_t middle = 0, mlp_inverse = 0, mlp_normed = 0, gate_up = 0, hidden = 0;
  };
  // What microbatches bring.
  struct Inputs {
    int64_t ids = 0, targets = 0, positions = 0, begins = 0;  // int32 [T]
    int64_t order = 0, run_end = 0;  // int32 [T]: tokens by id, for the embedding (kernels/embedding.h)
    int64_t bytes = 0;               // from ids to the end of them all
  };

  DevicePlan(const model::Decoder& decoder, const DeviceWeights& weights, const DeviceBatchSize& batch,
             Recompute recompute);

  const DeviceBatchSize& batch() const { return batch_; }
  Recompute recompute() const { return recompute_; }
  const std::vector<Kept>& layers() const { return layers_; }
  const Inputs& inputs() const { return inputs_; }
  // [T, D]: the stream behind the last layer, what the logits are products of, and gradients.
  int64_t last() const { return last_; }
  int64_t last_inverse() const { return last_inverse_; }
  int64_t last_normed() const { return last_normed_; }
  int64_t d_stream() const { return d_stream_; }
  int64_t rows() const {
    return rows_;
  }  // what a layer adds to the stream, or the gradient of a norm's output
  // Of a layer's backward, and in their place [logits_rows, V] logits.
  int64_t d_qkv() const { return d_qkv_; }
  int64_t d_heads() const { return d_heads_; }
  int64_t d_hidden() const { return d_hidden_; }
  int64_t d_gate_up() const { return d_gate_up_; }
  int64_t deltas() const { return deltas_; }  // f32, one for each head: of attention's gradient
  int64_t logits() const { return d_qkv_; }
  int64_t logits_rows() const { return logits_rows_; }
  int64_t losses() const { return losses_; }      // f32 [T]
  int64_t row_sums() const { return row_sums_; }  // f32: of kernels that add up over rows
  int64_t rope() const { return rope_; }          // cos and sin, f32 [length, head_dim]

  int64_t activation_bytes() const { return end_; }
  int64_t state_bytes() const { return state_bytes_; }  // weights twice, gradients, moments
  int64_t bytes() const { return end_ + state_bytes_; }
  // "weights 2.5 GB + 2.5 GB ..., activations 12 GB of 16,384 tokens", for messages.
  std::string text() const;

 private:
  int64_t take(int64_t bytes);

  DeviceBatchSize batch_;
  Recompute recompute_;
  std::vector<Kept> layers_;
  Inputs inputs_;
  int64_t last_ = 0, last_inverse_ = 0, last_normed_ = 0, d_stream_ = 0, rows_ = 0;
  int64_t d_qkv_ = 0, d_heads_ = 0, d_hidden_ = 0, d_gate_up_ = 0, deltas_ = 0, logits_rows_ = 0, losses_ = 0;
  int64_t row_sums_ = 0, rope_ = 0;
  int64_t end_ = 0, state_bytes_ = 0;
};

}  // namespace flywheel::train
