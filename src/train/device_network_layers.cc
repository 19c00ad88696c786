// A layer of the device's network, forward and back, and the head.
//
// d_stream is the gradient of the residual stream: each part of a layer adds to it where it stands, in the
// kernel of its norm's gradient.
#include <algorithm>
#include <cmath>

#include "train/device_network.h"

namespace flywheel::train {

using kernels::bf16;
using kernels::ConstRows;
using kernels::Rows;

// y = x w^T (+ bias), [T, N] of [T, K].
void DeviceNetwork::product(bf16* y, const bf16* x, int weight, int bias, int64_t T, int64_t N, int64_t K) {
  kernels_.linear(device_.stream(), y, x, copy(weight), bias < 0 ? nullptr : copy(bias), T, N, K);
}

// Of y = x w^T (+ bias): adds to the gradients of weight and bias, and writes that of x.
void DeviceNetwork::product_backward(bf16* dx, const bf16* dy, const bf16* x, int weight, int bias, int64_t T,
                                     int64_t N, int64_t K) {
  const kernels::DeviceStream stream = device_.stream();
  kernels_.linear_dx(stream, dx, dy, copy(weight), T, N, K, false);
  product_weights_backward(dy, x, weight, bias, T, N, K);
}

void DeviceNetwork::product_weights_backward(const bf16* dy, const bf16* x, int weight, int bias, int64_t T,
                                             int64_t N, int64_t K) {
  const kernels::DeviceStream stream = device_.stream();
  kernels_.linear_dw(stream, gradient(weight), dy, x, T, N, K);
  if (bias >= 0) kernels_.bias_backward(stream, gradient(bias), row_sums(), dy, N, T, N);
}

void DeviceNetwork::norm(int64_t y, int64_t inverse, int64_t x, int weight, int64_t T) {
  const int64_t D = config_.hidden_size;
  kernels_.rms_norm(device_.stream(), Rows{bf16_at(y), D}, at<float>(inverse), ConstRows{bf16_at(x), D},
                    master(weight), T, 1, D, static_cast<float>(config_.rms_norm_epsilon));
}

// sum = x + delta, and its norm.
void DeviceNetwork::add_and_norm(int64_t y, int64_t inverse, int64_t sum, int64_t x, int64_t delta,
                                 int weight, int64_t T) {
  kernels_.add_rms_norm(device_.stream(), bf16_at(y), bf16_at(sum), at<float>(inverse), bf16_at(x),
                        bf16_at(delta), master(weight), T, config_.hidden_size,
                        static_cast<float>(config_.rms_norm_epsilon));
}

// d_stream += the gradient of x, where d_rows is that of its norm.
void DeviceNetwork::norm_backward(int64_t inverse, int64_t x, int weight, int64_t T) {
  const int64_t D = config_.hidden_size;
  bf16* const stream_gradient = bf16_at(plan_.d_stream());
  kernels_.rms_norm_backward(device_.stream(), Rows{stream_gradient, D}, gradient(weight), row_sums(),
                             ConstRows{bf16_at(plan_.rows()), D}, ConstRows{stream_gradient, D},
                             ConstRows{bf16_at(x), D}, at<float>(inverse), master(weight), T, 1, D);
}

kernels::DeviceAttention DeviceNetwork::attention_of(size_t layer, const Shape& shape) {
  const DevicePlan::Kept& kept = plan_.layers()[layer];
  const int64_t Q = config_.q_width(), K = config_.kv_width(), W = Q + 2 * K;
  bf16* const qkv = bf16_at(kept.qkv);
  const bool normed = layers_.layers[layer].q_norm >= 0;
  bf16* const qk = normed ? bf16_at(kept.qk) : qkv;
  const int64_t stride = normed ? Q + K : W;
  return {.q = {qk, stride},
          .k = {qk + Q, stride},
          .v = {qkv + Q + K, W},
          .begins_BT = shape.packed ? at<int32_t>(plan_.inputs().begins) : nullptr,
          .B = shape.sequences,
          .T = shape.length,
          .heads = config_.num_heads,
          .kv_heads = config_.num_kv_heads,
          .head_dim = config_.head_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
          .window = layers_.layers[layer].window};
}

// From q, k and v as products gave them to what they say of other tokens.
void DeviceNetwork::attend(size_t layer, const Shape& shape) {
  const DevicePlan::Kept& kept = plan_.layers()[layer];
  const DeviceLayer& weights = layers_.layers[layer];
  const int64_t T = shape.sequences * shape.length, Hq = config_.num_heads, Hk = config_.num_kv_heads;
  const int64_t d = config_.head_dim, Q = config_.q_width(), W = Q + 2 * config_.kv_width(),
                S = (Hq + Hk) * d;
  const auto epsilon = static_cast<float>(config_.rms_norm_epsilon);
  const kernels::DeviceStream stream = device_.stream();
  Rows qk{bf16_at(kept.qkv), W};
  if (weights.q_norm >= 0) {
    const Rows normed{bf16_at(kept.qk), S};
    float* const inverse = at<float>(kept.qk_inverse);
    kernels_.rms_norm(stream, normed, inverse, qk, master(weights.q_norm), T, Hq, d, epsilon);
    kernels_.rms_norm(stream, {normed.data + Q, S}, inverse + T * Hq, {qk.data + Q, W},
                      master(weights.k_norm), T, Hk, d, epsilon);
    qk = normed;
  }
  kernels_.rope(stream, qk, at<int32_t>(plan_.inputs().positions), at<float>(plan_.rope()), T, Hq + Hk, d,
                d / 2, 1);
  kernels_.attention(stream, bf16_at(kept.heads), at<float>(kept.log_sums), attention_of(layer, shape));
}

// From the gradient of `heads` to that of q, k and v as products gave them.
void DeviceNetwork::attend_backward(size_t layer, const Shape& shape) {
  const DevicePlan::Kept& kept = plan_.layers()[layer];
  const DeviceLayer& weights = layers_.layers[layer];
  const int64_t T = shape.sequences * shape.length, Hq = config_.num_heads, Hk = config_.num_kv_heads;
  const int64_t d = config_.head_dim, Q = config_.q_width(), K = config_.kv_width(), W = Q + 2 * K;
  const kernels::DeviceStream stream = device_.stream();
  bf16* const d_qkv = bf16_at(plan_.d_qkv());
  const Rows dq{d_qkv, W}, dk{d_qkv + Q, W}, dv{d_qkv + Q + K, W};
  kernels_.attention_backward(stream, dq, dk, dv, at<float>(plan_.deltas()), bf16_at(plan_.d_heads()),
                              bf16_at(kept.heads), at<float>(kept.log_sums), attention_of(layer, shape));
  kernels_.rope(stream, dq, at<int32_t>(plan_.inputs().positions), at<float>(plan_.rope()), T, Hq + Hk, d,
                d / 2, -1);
  if (weights.q_norm < 0) return;
  const ConstRows q{bf16_at(kept.qkv), W}, k{bf16_at(kept.qkv) + Q, W};
  const float* const inverse = at<float>(kept.qk_inverse);
  const ConstRows none{nullptr, 0};
  kernels_.rms_norm_backward(stream, dq, gradient(weights.q_norm), row_sums(), dq, none, q, inverse,
                             master(weights.q_norm), T, Hq, d);
  kernels_.rms_norm_backward(stream, dk, gradient(weights.k_norm), row_sums(), dk, none, k, inverse + T * Hq,
                             master(weights.k_norm), T, Hk, d);
}

// What a layer's gradient reads, from `in` and its norm.
void DeviceNetwork::compute_layer(size_t layer, const Shape& shape) {
  const DevicePlan::Kept& kept = plan_.layers()[layer];
  const DeviceLayer& weights = layers_.layers[layer];
  const int64_t T = shape.sequences * shape.length, D = config_.hidden_size, F = config_.intermediate_size;
  const int64_t Q = config_.q_width(), W = Q + 2 * config_.kv_width();
  product(bf16_at(kept.qkv), bf16_at(kept.normed), weights.qkv[0], weights.qkv_bias[0], T, W, D);
  attend(layer, shape);
  product(bf16_at(plan_.rows()), bf16_at(kept.heads), weights.output, weights.output_bias, T, D, Q);
  add_and_norm(kept.mlp_normed, kept.mlp_inverse, kept.middle, kept.in, plan_.rows(), weights.mlp_norm, T);
  product(bf16_at(kept.gate_up), bf16_at(kept.mlp_normed), weights.gate_up[0], weights.gate_up_bias[0], T,
          2 * F, D);
  kernels_.swiglu(device_.stream(), bf16_at(kept.hidden), bf16_at(kept.gate_up), T, F);
}

// With its norm before it; the sum behind it is the next layer's, or what the logits are of.
void DeviceNetwork::forward_layer(size_t layer, const Shape& shape) {
  const std::vector<DevicePlan::Kept>& all = plan_.layers();
  const int64_t T = shape.sequences * shape.length;
  const DeviceLayer& weights = layers_.layers[layer];
  if (layer == 0) norm(all[0].normed, all[0].inverse, all[0].in, weights.attention_norm, T);
  compute_layer(layer, shape);
  product(bf16_at(plan_.rows()), bf16_at(all[layer].hidden), weights.down, weights.down_bias, T,
          config_.hidden_size, config_.intermediate_size);
  if (layer + 1 < all.size()) {
    const DevicePlan::Kept& next = all[layer + 1];
    add_and_norm(next.normed, next.inverse, next.in, all[layer].middle, plan_.rows(),
                 layers_.layers[layer + 1].attention_norm, T);
  } else {
    add_and_norm(plan_.last_normed(), plan_.last_inverse(), plan_.last(), all[layer].middle, plan_.rows(),
                 layers_.final_norm, T);
  }
}

void DeviceNetwork::backward_layer(size_t layer, const Shape& shape) {
  const DevicePlan::Kept& kept = plan_.layers()[layer];
  const DeviceLayer& weights = layers_.layers[layer];
  const int64_t T = shape.sequences * shape.length, D = config_.hidden_size, F = config_.intermediate_size;
  const int64_t Q = config_.q_width(), W = Q + 2 * config_.kv_width();
  const kernels::DeviceStream stream = device_.stream();
  const Recompute recompute = plan_.recompute();
  const bool norms_again = recompute.has(Recomputed::kNorm);
  if (recompute == Recompute::kFull) {
    norm(kept.normed, kept.inverse, kept.in, weights.attention_norm, T);
    compute_layer(layer, shape);
  }
  bf16* const d_stream = bf16_at(plan_.d_stream());
  bf16* const d_rows = bf16_at(plan_.rows());
  bf16* const d_hidden = bf16_at(plan_.d_hidden());
  bf16* const d_gate_up = bf16_at(plan_.d_gate_up());
  bf16* const hidden = bf16_at(kept.hidden);
  kernels_.linear_dx(stream, d_hidden, d_stream, copy(weights.down), T, D, F, false);
  kernels_.swiglu_backward(stream, d_gate_up, recompute.has(Recomputed::kSwiglu) ? hidden : nullptr, d_hidden,
                           bf16_at(kept.gate_up), T, F);
  product_weights_backward(d_stream, hidden, weights.down, weights.down_bias, T, D, F);
  if (norms_again) norm(kept.mlp_normed, kept.mlp_inverse, kept.middle, weights.mlp_norm, T);
  product_backward(d_rows, d_gate_up, bf16_at(kept.mlp_normed), weights.gate_up[0], weights.gate_up_bias[0],
                   T, 2 * F, D);
  norm_backward(kept.mlp_inverse, kept.middle, weights.mlp_norm, T);
  product_backward(bf16_at(plan_.d_heads()), d_stream, bf16_at(kept.heads), weights.output,
                   weights.output_bias, T, D, Q);
  attend_backward(layer, shape);
  if (norms_again) norm(kept.normed, kept.inverse, kept.in, weights.attention_norm, T);
  product_backward(d_rows, bf16_at(plan_.d_qkv()), bf16_at(kept.normed), weights.qkv[0], weights.qkv_bias[0],
                   T, W, D);
  norm_backward(kept.inverse, kept.in, weights.attention_norm, T);
}

// Losses of all rows; with gradients, those of the output matrix and of the stream behind the last layer.
void DeviceNetwork::head(const Shape& shape, Pass pass) {
  const int64_t T = shape.sequences * shape.length, D = config_.hidden_size, V = config_.vocab_size;
  const kernels::DeviceStream stream = device_.stream();
  bf16* const logits = bf16_at(plan_.logits());
  for (int64_t first = 0; first < T; first += plan_.logits_rows()) {
    const int64_t rows = std::min(plan_.logits_rows(), T - first);
    const bf16* const x = bf16_at(plan_.last_normed()) + first * D;
    product(logits, x, layers_.head, -1, rows, V, D);
    bf16* const d_logits = pass == Pass::kTrain ? logits : nullptr;  // in their place
    kernels_.softmax_cross_entropy(stream, d_logits, at<float>(plan_.losses()) + first, logits,
                                   at<int32_t>(plan_.inputs().targets) + first, 1, rows, V, V);
    if (pass == Pass::kTrain)
      product_backward(bf16_at(plan_.rows()) + first * D, logits, x, layers_.head, -1, rows, V, D);
  }
  if (pass == Pass::kEvaluate) return;
  // Nothing has a gradient from behind the last norm but the norm itself.
  kernels_.rms_norm_backward(stream, Rows{bf16_at(plan_.d_stream()), D}, gradient(layers_.final_norm),
                             row_sums(), ConstRows{bf16_at(plan_.rows()), D}, ConstRows{nullptr, 0},
                             ConstRows{bf16_at(plan_.last()), D}, at<float>(plan_.last_inverse()),
                             master(layers_.final_norm), T, 1, D);
}

}  // namespace flywheel::train
