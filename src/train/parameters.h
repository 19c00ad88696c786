// A rank's weights as the trainer keeps them: one flat f32 buffer each for weights and gradients, in the
// order of LocalDecoder::weights; and, beside them, what the kernels read: each matrix packed for the forward
// product and, transposed, for the gradient of its input. The optimizer's state is the optimizer's
// (train/optimizer.h).
//
// The packed forms are rounded to the compute dtype; the f32 weights are the truth: whoever changes them
// calls pack().
//
// Ownership: owns everything. Threads: one at a time; `pool` is used inside.
//
//   Parameters parameters(whole(describe(config)), DType::kBF16, pool);
//   parameters.initialize(seed);
//   ...the network adds to gradients()...
//   optimizer.step(parameters.weights(), parameters.gradients(), {.lr = 1e-3}, pool);
//   parameters.pack(), parameters.clear_gradients();
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "kernels/linear.h"
#include "model/weights.h"
#include "train/flat_weights.h"
#include "train/local_decoder.h"
#include "train/rounding.h"

namespace flywheel::train {

class Parameters {
 public:
  Parameters(const LocalDecoder& decoder, kernels::DType compute, ThreadPool& pool,
             Rounding rounding = Rounding::kNone);

  // Normal with standard deviation 0.02, that of the matrices which write to the residual stream divided by
  // sqrt(2 * layers) (Radford et al. 2019); norms 1, biases 0. A pure function of `seed`.
  void initialize(uint64_t seed);
  // Errors: kNotFound, kInvalid for a source that lacks a weight or has it in another shape.
  Result<void> load(const model::WeightSource& source);

  // By index into LocalDecoder::weights.
  std::span<float> weight(int index) { return slice(weights_, index); }
  std::span<float> gradient(int index) { return slice(gradients_, index); }
  const kernels::PackedWeight& packed(int index) const { return entries_[at(index)].packed; }
  const kernels::PackedWeight& packed_transposed(int index) const { return entries_[at(index)].transposed; }
  // The rows that an embedding reads, in the compute dtype.
  const void* rows(int index) const;
  kernels::DType compute() const { return compute_; }
  Rounding rounding() const { return rounding_; }

  // Flat, with a few zeros between weights.
  std::span<float> gradients() { return gradients_; }
  std::span<float> weights() { return weights_; }

  // Over all weights, or over those that `counts` takes.
  double squared_gradients(const std::function<bool(const WeightShard&)>& counts = nullptr) const;
  void clear_gradients();
  // After weights() changed.
  void pack();

 private:
  struct Entry {
    FlatWeight place;
    kernels::PackedWeight packed, transposed;
  };
  static size_t at(int index) { return static_cast<size_t>(index); }
  // Weight `i` as its products see it, in rounded_.
  const float* round(size_t i, bool linear);
  std::span<float> slice(std::vector<float>& flat, int index) {
    const FlatWeight& w = entries_[at(index)].place;
    return std::span(flat).subspan(static_cast<size_t>(w.offset), static_cast<size_t>(w.count));
  }
  LocalDecoder decoder_;
  kernels::DType compute_;
  Rounding rounding_;
  ThreadPool& pool_;
  std::vector<Entry> entries_;
  std::vector<float> weights_, gradients_;
  std::vector<uint16_t> bf16_;  // the weights rounded, where compute is bf16
  std::vector<float> rounded_;  // the same, where there is a Rounding
};

}  // namespace flywheel::train
