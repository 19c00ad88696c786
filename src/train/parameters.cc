#include "train/parameters.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/philox.h"
#include "kernels/elementwise.h"
#include "kernels/fp8.h"

namespace flywheel::train {
namespace {

using kernels::DType;
using model::Op;
using model::WeightKind;

constexpr uint64_t kInitStream = 0x696e6974;  // Philox stream of the initial weights

// Matrices whose output is added to the residual stream, at once or after an exchange.
std::vector<bool> residual_matrices(const LocalDecoder& decoder) {
  std::vector<bool> result(decoder.weights.size(), false);
  std::vector<int> weight_of(decoder.values.size(), -1);  // the matrix that made a value
  for (const LocalStep& step : decoder.steps) {
    const bool passes = step.exchange != Exchange::kNone || step.bias_alone;
    auto& made_by = weight_of[static_cast<size_t>(step.out)];
    if (passes) {
      made_by = weight_of[static_cast<size_t>(step.in[0])];
    } else if (step.op == Op::kLinear) {
      made_by = step.weight;
    } else if (step.op == Op::kAdd) {
      for (const int in : step.in) {
        if (const int w = weight_of[static_cast<size_t>(in)]; w >= 0) result[static_cast<size_t>(w)] = true;
      }
    }
  }
  return result;
}

// Whether a step of the decoder's own makes a product (of the logits too).
bool multiplies(const LocalStep& s) {
  const bool computes = s.exchange == Exchange::kNone && !s.bias_alone;
  return computes && (s.op == Op::kLinear || s.op == Op::kLogits);
}

}  // namespace

Parameters::Parameters(const LocalDecoder& decoder, DType compute, ThreadPool& pool, Rounding rounding)
    : decoder_(decoder), compute_(compute), rounding_(rounding), pool_(pool) {
  CHECK(compute == DType::kF32 || compute == DType::kBF16, "training in {}", dtype_name(compute));
  CHECK(rounding == Rounding::kNone || compute == DType::kF32, "rounded factors are multiplied in f32");
  const std::vector<FlatWeight> flat = flat_weights(decoder_);
  for (const FlatWeight& weight : flat) entries_.push_back({.place = weight, .packed = {}, .transposed = {}});
  const auto total = static_cast<size_t>(flat_count(flat));
  weights_.assign(total, 0.0f);
  gradients_.assign(total, 0.0f);
  if (compute == DType::kBF16) bf16_.assign(total, 0);
  if (rounding != Rounding::kNone) rounded_.assign(total, 0.0f);
}

void Parameters::initialize(uint64_t seed) {
  const std::vector<bool> residual = residual_matrices(decoder_);
  const double shrink =
      1.0 / std::sqrt(2.0 * static_cast<double>(std::max<int64_t>(1, decoder_.config.num_layers)));
  pool_.parallel_for(std::ssize(entries_), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto index = static_cast<size_t>(i);
      const std::span<float> out = weight(static_cast<int>(i));
      if (decoder_.weights[index].kind != WeightKind::kMatrix) {
        std::ranges::fill(out, decoder_.weights[index].kind == WeightKind::kNorm ? 1.0f : 0.0f);
        continue;
      }
      // Every rank draws the whole matrix and keeps its part, so that the mesh does not change the model.
      Philox rng(seed, kInitStream + static_cast<uint64_t>(decoder_.shards[index].whole));
      const auto deviation = static_cast<float>(0.02 * (residual[index] ? shrink : 1.0));
      std::vector<float> drawn(static_cast<size_t>(entries_[index].place.whole_count()));
      for (float& w : drawn) w = rng.normal() * deviation;
      for_each_run(entries_[index].place, [&](int64_t from, int64_t to, int64_t count) {
        std::copy_n(drawn.begin() + from, count, out.begin() + to);
      });
    }
  });
  pack();
}

Result<void> Parameters::load(const model::WeightSource& source) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const FlatWeight& place = entries_[i].place;
    ASSIGN_OR_RETURN(const model::Tensor tensor, source.tensor(place.name));
    if (tensor.shape != place.shape) {
      return make_error(ErrorCode::kInvalid, "{}: {} has another shape than the model's config says",
                        source.path(), place.name);
    }
    const std::vector<float> values = model::to_f32(tensor);
    const std::span<float> out = weight(static_cast<int>(i));
    for_each_run(place, [&](int64_t from, int64_t to, int64_t count) {
      std::copy_n(values.begin() + from, count, out.begin() + to);
    });
  }
  pack();
  return {};
}

const void* Parameters::rows(int index) const {
  const int64_t offset = entries_[at(index)].place.offset;
  if (compute_ == DType::kBF16) return bf16_.data() + offset;
  return (rounding_ == Rounding::kNone ? weights_.data() : rounded_.data()) + offset;
}

double Parameters::squared_gradients(const std::function<bool(const WeightShard&)>& counts) const {
  if (counts == nullptr) return kernels::sum_of_squares(gradients_.data(), std::ssize(gradients_), pool_);
  double sum = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (!counts(decoder_.shards[i])) continue;
    sum +=
        kernels::sum_of_squares(gradients_.data() + entries_[i].place.offset, entries_[i].place.count, pool_);
  }
  return sum;
}

void Parameters::clear_gradients() {
  pool_.parallel_for(std::ssize(gradients_), 1 << 16, [&](int64_t begin, int64_t end) {
    std::fill(gradients_.begin() + begin, gradients_.begin() + end, 0.0f);
  });
}

void Parameters::pack() {
  if (compute_ == DType::kBF16) {
    pool_.parallel_for(std::ssize(weights_), 1 << 16, [&](int64_t begin, int64_t end) {
      kernels::from_f32(bf16_.data() + begin, weights_.data() + begin, DType::kBF16, end - begin);
    });
  }
  // An embedding that is not also the output matrix is only read row by row.
  std::vector<bool> multiplied(entries_.size(), false), linear(multiplied);
  for (const LocalStep& s : decoder_.steps) {
    if (!multiplies(s)) continue;
    multiplied[static_cast<size_t>(s.weight)] = true;
    if (s.op == Op::kLinear) linear[static_cast<size_t>(s.weight)] = true;
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    const float* w = rounding_ == Rounding::kNone ? weights_.data() + e.place.offset : round(i, linear[i]);
    if (!multiplied[i]) continue;
    const int64_t N = decoder_.weights[i].shape[0], K = decoder_.weights[i].shape[1];
    if (e.packed.empty()) {
      e.packed = kernels::PackedWeight::pack_from_f32(compute_, w, N, K, pool_);
      e.transposed = kernels::PackedWeight::pack_transposed_from_f32(compute_, w, N, K, pool_);
    } else {
      e.packed.repack_from_f32(w, pool_);
      e.transposed.repack_transposed_from_f32(w, pool_);
    }
  }
}

const float* Parameters::round(size_t i, bool linear) {
  const FlatWeight& place = entries_[i].place;
  const float* w = weights_.data() + place.offset;
  float* out = rounded_.data() + place.offset;
  if (place.matrix && rounding_ == Rounding::kF16) {
    kernels::round_to(out, w, DType::kF16, place.count, pool_);
  } else if (linear && rounding_ != Rounding::kF16) {
    const std::vector<int64_t>& shape = decoder_.weights[i].shape;
    kernels::round_fp8(out, w, shape[0], shape[1],
                       rounding_ == Rounding::kFp8Blocks ? kernels::kFp8Squares : kernels::kFp8Tensor,
                       kernels::Fp8Format::kE4M3, pool_);
  } else {
    std::copy_n(w, place.count, out);
  }
  return out;
}

}  // namespace flywheel::train
