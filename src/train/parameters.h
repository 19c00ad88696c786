// A rank's weights as the trainer keeps them: one flat f32 buffer each for weights, gradients and the two
// moments of AdamW, in the order of LocalDecoder::weights; and, beside them, what the kernels read: each
// matrix packed for the forward product and, transposed, for the gradient of its input.
//
// The packed forms are rounded to the compute dtype; the f32 weights are the truth. update() is the only way
// that they change during training, and packs again.
//
// Ownership: owns everything. Threads: one at a time; `pool` is used inside.
//
//   Parameters parameters(whole(describe(config)), DType::kBF16, pool);
//   parameters.initialize(seed);
//   ...the network adds to gradients()...
//   double norm = parameters.gradient_norm();
//   parameters.update({.lr = 1e-3f, .t = 1, .gradient_scale = scale});
//   parameters.clear_gradients();
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "kernels/adamw.h"
#include "kernels/linear.h"
#include "model/weights.h"
#include "train/local_decoder.h"

namespace flywheel::train {

// Where each weight of a whole decoder lies in a flat buffer of it, in values; the last entry is its size.
std::vector<int64_t> flat_offsets(const std::vector<model::WeightInfo>& weights);

// Values that a weight of `count` takes in the flat buffers: each begins at a whole vector of 16.
inline int64_t padded_count(int64_t count) {
  return (count + 15) / 16 * 16;
}

// Between a flat buffer of this rank's weights (or of one value for each) and one of the whole decoder's.
void to_whole(const LocalDecoder& local, std::span<const float> own, std::span<float> whole);
void from_whole(const LocalDecoder& local, std::span<const float> whole, std::span<float> own);

class Parameters {
 public:
  Parameters(const LocalDecoder& decoder, kernels::DType compute, ThreadPool& pool);

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

  // Flat, with a few zeros between weights.
  std::span<float> gradients() { return gradients_; }
  std::span<float> weights() { return weights_; }
  std::span<float> first_moments() { return m_; }
  std::span<float> second_moments() { return v_; }

  // Over all weights, or over those that `counts` takes.
  double squared_gradients(const std::function<bool(const WeightShard&)>& counts = nullptr) const;
  void clear_gradients();
  // `step.weight_decay` goes to matrices only.
  void update(const kernels::AdamWStep& step);
  // After weights() was written from outside.
  void pack();

  // SHA-256 over weights and both moments.
  std::string sha256() const;

 private:
  struct Entry {
    int64_t offset = 0, count = 0;
    bool matrix = false;
    kernels::PackedWeight packed, transposed;
  };
  static size_t at(int index) { return static_cast<size_t>(index); }
  std::span<float> slice(std::vector<float>& flat, int index) {
    const Entry& e = entries_[at(index)];
    return std::span(flat).subspan(static_cast<size_t>(e.offset), static_cast<size_t>(e.count));
  }
  LocalDecoder decoder_;
  kernels::DType compute_;
  ThreadPool& pool_;
  std::vector<Entry> entries_;
  std::vector<float> weights_, gradients_, m_, v_;
  std::vector<uint16_t> bf16_;  // the weights rounded, where compute is bf16
};

}  // namespace flywheel::train
