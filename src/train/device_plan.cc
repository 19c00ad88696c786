#include "train/device_plan.h"

#include <algorithm>

#include "base/progress.h"
#include "kernels/device_table.h"

namespace flywheel::train {
namespace {

constexpr int64_t kAlignment = 256;  // bytes
constexpr int64_t kLogitsAtOnce = int64_t{128}
                                  << 20;              // values: 256 MB, of a vocabulary of 128,000 1,024 rows
constexpr int64_t kRowsOfATile = 128;                 // of a product
constexpr int64_t kBytesAWeight = 4 + 2 + 4 + 4 + 4;  // master, copy, gradient, moments

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

int64_t rows_at_once(int64_t rows, int64_t vocabulary) {
  const int64_t most = std::max(kRowsOfATile, kLogitsAtOnce / vocabulary / kRowsOfATile * kRowsOfATile);
  return std::min(rows, most);
}

}  // namespace

int64_t DevicePlan::take(int64_t bytes) {
  const int64_t at = end_;
  end_ += aligned(bytes);
  return at;
}

DevicePlan::DevicePlan(const model::Decoder& decoder, const DeviceWeights& weights,
                       const DeviceBatchSize& batch, Recompute recompute)
    : batch_(batch), recompute_(recompute), state_bytes_(kBytesAWeight * weights.count()) {
  const model::DecoderConfig& c = decoder.config;
  const int64_t T = batch.rows(), D = c.hidden_size, F = c.intermediate_size, V = c.vocab_size;
  const int64_t Q = c.q_width(), K = c.kv_width();
  const auto bf16 = [&](int64_t width) { return take(T * width * 2); };
  const auto f32 = [&](int64_t width) { return take(T * width * 4); };
  const bool full = recompute == Recompute::kFull;
  const bool keeps_norms = !full && !recompute.has(Recomputed::kNorm);
  const bool keeps_hidden = !full && !recompute.has(Recomputed::kSwiglu);
  Kept shared;
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    Kept kept = shared;
    const bool own = !full || layer == 0;  // the first layer's set is that of all
    kept.in = bf16(D);
    if (own) {
      kept.inverse = f32(1);
      if (keeps_norms || layer == 0) kept.normed = bf16(D);
      kept.qkv = bf16(Q + 2 * K);
      if (c.qk_norm) kept.qk_inverse = f32(c.num_heads + c.num_kv_heads), kept.qk = bf16(Q + K);
      kept.heads = bf16(Q), kept.log_sums = f32(c.num_heads);
      kept.middle = bf16(D), kept.mlp_inverse = f32(1);
      if (keeps_norms || layer == 0) kept.mlp_normed = bf16(D);
      kept.gate_up = bf16(2 * F);
      if (keeps_hidden || layer == 0) kept.hidden = bf16(F);
    }
    if (layer == 0) shared = kept;
    layers_.push_back(kept);
  }
  last_ = bf16(D), last_inverse_ = f32(1), last_normed_ = bf16(D);
  d_stream_ = bf16(D), rows_ = bf16(D);
  losses_ = f32(1);
  logits_rows_ = rows_at_once(T, V);
  // The backward of a layer's parts, one after another; the logits are gone before the first.
  const int64_t working = end_;
  d_qkv_ = bf16(Q + 2 * K), d_heads_ = bf16(Q), d_hidden_ = bf16(F), d_gate_up_ = bf16(2 * F);
  deltas_ = f32(c.num_heads);
  end_ = std::max(end_, working + aligned(logits_rows_ * V * 2));
  using kernels::row_workspace;
  const int64_t widest = std::max(Q + 2 * K, 2 * F);  // of what may have a bias
  row_sums_ =
      take(4 * std::max({row_workspace(T, std::max(D, widest)), row_workspace(T * c.num_heads, c.head_dim)}));
  rope_ = take(batch.length * c.head_dim * 4);
  for (int64_t* place : {&inputs_.ids, &inputs_.targets, &inputs_.positions, &inputs_.begins, &inputs_.order,
                         &inputs_.run_end})
    *place = take(T * 4);
  inputs_.bytes = end_ - inputs_.ids;
}

std::string DevicePlan::text() const {
  return fmt::format("{} of weights, gradients and optimizer state, {} of activations of {} tokens",
                     human_bytes(static_cast<double>(state_bytes_)), human_bytes(static_cast<double>(end_)),
                     batch_.rows());
}

}  // namespace flywheel::train
