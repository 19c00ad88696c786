#include "train/parameters.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/hash.h"
#include "base/philox.h"
#include "kernels/elementwise.h"

namespace flywheel::train {
namespace {

using kernels::DType;
using model::Op;
using model::WeightKind;

constexpr uint64_t kInitStream = 0x696e6974;  // Philox stream of the initial weights

// Matrices whose output is added to the residual stream.
std::vector<bool> residual_matrices(const model::Decoder& decoder) {
  std::vector<bool> result(decoder.weights.size(), false);
  for (const model::Step& add : decoder.steps) {
    if (add.op != Op::kAdd) continue;
    for (const model::Step& step : decoder.steps) {
      if (step.op == Op::kLinear && std::ranges::find(add.in, step.out) != add.in.end()) {
        result[static_cast<size_t>(step.weight)] = true;
      }
    }
  }
  return result;
}

}  // namespace

Parameters::Parameters(const model::Decoder& decoder, DType compute, ThreadPool& pool)
    : decoder_(decoder), compute_(compute), pool_(pool) {
  CHECK(compute == DType::kF32 || compute == DType::kBF16, "training in {}", dtype_name(compute));
  int64_t total = 0;
  for (const model::WeightInfo& info : decoder_.weights) {
    Entry entry{.offset = total, .count = 1, .matrix = info.kind == WeightKind::kMatrix};
    for (const int64_t dim : info.shape) entry.count *= dim;
    total += padded_count(entry.count);
    entries_.push_back(std::move(entry));
  }
  for (auto* flat : {&weights_, &gradients_, &m_, &v_}) flat->assign(static_cast<size_t>(total), 0.0f);
  if (compute == DType::kBF16) bf16_.assign(static_cast<size_t>(total), 0);
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
      Philox rng(seed, kInitStream + index);
      const auto deviation = static_cast<float>(0.02 * (residual[index] ? shrink : 1.0));
      for (float& w : out) w = rng.normal() * deviation;
    }
  });
  pack();
}

Result<void> Parameters::load(const model::WeightSource& source) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const model::WeightInfo& info = decoder_.weights[i];
    ASSIGN_OR_RETURN(const model::Tensor tensor, source.tensor(info.name));
    if (tensor.shape != info.shape) {
      return make_error(ErrorCode::kInvalid, "{}: {} has another shape than the model's config says",
                        source.path(), info.name);
    }
    const std::vector<float> values = model::to_f32(tensor);
    std::ranges::copy(values, weight(static_cast<int>(i)).begin());
  }
  pack();
  return {};
}

const void* Parameters::rows(int index) const {
  const int64_t offset = entries_[at(index)].offset;
  return compute_ == DType::kBF16 ? static_cast<const void*>(bf16_.data() + offset)
                                  : weights_.data() + offset;
}

double Parameters::gradient_norm() const {
  return std::sqrt(kernels::sum_of_squares(gradients_.data(), std::ssize(gradients_), pool_));
}

void Parameters::clear_gradients() {
  pool_.parallel_for(std::ssize(gradients_), 1 << 16, [&](int64_t begin, int64_t end) {
    std::fill(gradients_.begin() + begin, gradients_.begin() + end, 0.0f);
  });
}

void Parameters::update(const kernels::AdamWStep& step) {
  for (const Entry& e : entries_) {
    kernels::AdamWStep own = step;
    if (!e.matrix) own.weight_decay = 0;
    kernels::adamw(weights_.data() + e.offset, m_.data() + e.offset, v_.data() + e.offset,
                   gradients_.data() + e.offset, nullptr, e.count, own, pool_);
  }
  pack();
}

void Parameters::pack() {
  if (compute_ == DType::kBF16) {
    pool_.parallel_for(std::ssize(weights_), 1 << 16, [&](int64_t begin, int64_t end) {
      kernels::from_f32(bf16_.data() + begin, weights_.data() + begin, DType::kBF16, end - begin);
    });
  }
  // An embedding that is not also the output matrix is only read row by row.
  std::vector<bool> multiplied(entries_.size(), false);
  for (const model::Step& s : decoder_.steps) {
    if (s.op == Op::kLinear || s.op == Op::kLogits) multiplied[static_cast<size_t>(s.weight)] = true;
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (!multiplied[i]) continue;
    Entry& e = entries_[i];
    const float* w = weights_.data() + e.offset;
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

std::string Parameters::sha256() const {
  Sha256 sha;
  for (const auto* flat : {&weights_, &m_, &v_}) {
    sha.update({reinterpret_cast<const char*>(flat->data()), flat->size() * sizeof(float)});
  }
  return sha.hex();
}

}  // namespace flywheel::train
