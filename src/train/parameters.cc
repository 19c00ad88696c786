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

int64_t count_of(const model::WeightInfo& info) {
  int64_t count = 1;
  for (const int64_t dim : info.shape) count *= dim;
  return count;
}

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

// Calls f(offset in a flat buffer of the whole decoder, in one of this rank's, count) for each run of values
// that lie together in both.
template <typename F>
void for_each_run(const WeightShard& shard, const model::WeightInfo& whole, int64_t whole_offset,
                  int64_t own_offset, const F& f) {
  const int64_t columns = whole.shape.size() > 1 ? whole.shape[1] : 1;
  const int64_t width = shard.column_end - shard.column_begin;
  if (width == columns) {
    f(whole_offset + shard.row_begin * columns, own_offset, (shard.row_end - shard.row_begin) * columns);
    return;
  }
  for (int64_t row = shard.row_begin; row < shard.row_end; ++row) {
    f(whole_offset + row * columns + shard.column_begin, own_offset + (row - shard.row_begin) * width, width);
  }
}

// The same with the offsets of every weight of the rank.
template <typename F>
void for_each_run(const LocalDecoder& local, const F& f) {
  const std::vector<int64_t> whole = flat_offsets(local.whole_weights), own = flat_offsets(local.weights);
  for (size_t i = 0; i < local.shards.size(); ++i) {
    const auto index = static_cast<size_t>(local.shards[i].whole);
    for_each_run(local.shards[i], local.whole_weights[index], whole[index], own[i], f);
  }
}

}  // namespace

void to_whole(const LocalDecoder& local, std::span<const float> own, std::span<float> whole) {
  for_each_run(local, [&](int64_t to, int64_t from, int64_t count) {
    std::copy_n(own.begin() + from, count, whole.begin() + to);
  });
}

void from_whole(const LocalDecoder& local, std::span<const float> whole, std::span<float> own) {
  for_each_run(local, [&](int64_t from, int64_t to, int64_t count) {
    std::copy_n(whole.begin() + from, count, own.begin() + to);
  });
}

std::vector<int64_t> flat_offsets(const std::vector<model::WeightInfo>& weights) {
  std::vector<int64_t> offsets{0};
  for (const model::WeightInfo& info : weights)
    offsets.push_back(offsets.back() + padded_count(count_of(info)));
  return offsets;
}

Parameters::Parameters(const LocalDecoder& decoder, DType compute, ThreadPool& pool)
    : decoder_(decoder), compute_(compute), pool_(pool) {
  CHECK(compute == DType::kF32 || compute == DType::kBF16, "training in {}", dtype_name(compute));
  const std::vector<int64_t> offsets = flat_offsets(decoder_.weights);
  for (size_t i = 0; i < decoder_.weights.size(); ++i) {
    const model::WeightInfo& info = decoder_.weights[i];
    entries_.push_back(
        {.offset = offsets[i], .count = count_of(info), .matrix = info.kind == WeightKind::kMatrix});
  }
  const auto total = static_cast<size_t>(offsets.back());
  for (auto* flat : {&weights_, &gradients_, &m_, &v_}) flat->assign(total, 0.0f);
  if (compute == DType::kBF16) bf16_.assign(total, 0);
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
      const WeightShard& shard = decoder_.shards[index];
      const auto whole = static_cast<size_t>(shard.whole);
      Philox rng(seed, kInitStream + whole);
      const auto deviation = static_cast<float>(0.02 * (residual[index] ? shrink : 1.0));
      std::vector<float> drawn(static_cast<size_t>(count_of(decoder_.whole_weights[whole])));
      for (float& w : drawn) w = rng.normal() * deviation;
      for_each_run(shard, decoder_.whole_weights[whole], 0, 0, [&](int64_t from, int64_t to, int64_t count) {
        std::copy_n(drawn.begin() + from, count, out.begin() + to);
      });
    }
  });
  pack();
}

Result<void> Parameters::load(const model::WeightSource& source) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const WeightShard& shard = decoder_.shards[i];
    const model::WeightInfo& info = decoder_.whole_weights[static_cast<size_t>(shard.whole)];
    ASSIGN_OR_RETURN(const model::Tensor tensor, source.tensor(info.name));
    if (tensor.shape != info.shape) {
      return make_error(ErrorCode::kInvalid, "{}: {} has another shape than the model's config says",
                        source.path(), info.name);
    }
    const std::vector<float> values = model::to_f32(tensor);
    const std::span<float> out = weight(static_cast<int>(i));
    for_each_run(shard, info, 0, 0, [&](int64_t from, int64_t to, int64_t count) {
      std::copy_n(values.begin() + from, count, out.begin() + to);
    });
  }
  pack();
  return {};
}

const void* Parameters::rows(int index) const {
  const int64_t offset = entries_[at(index)].offset;
  return compute_ == DType::kBF16 ? static_cast<const void*>(bf16_.data() + offset)
                                  : weights_.data() + offset;
}

double Parameters::squared_gradients(const std::function<bool(const WeightShard&)>& counts) const {
  if (counts == nullptr) return kernels::sum_of_squares(gradients_.data(), std::ssize(gradients_), pool_);
  double sum = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (!counts(decoder_.shards[i])) continue;
    sum += kernels::sum_of_squares(gradients_.data() + entries_[i].offset, entries_[i].count, pool_);
  }
  return sum;
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
  for (const LocalStep& s : decoder_.steps) {
    const bool computes = s.exchange == Exchange::kNone && !s.bias_alone;
    if (computes && (s.op == Op::kLinear || s.op == Op::kLogits))
      multiplied[static_cast<size_t>(s.weight)] = true;
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
