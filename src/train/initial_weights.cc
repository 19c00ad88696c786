#include "train/initial_weights.h"

#include <algorithm>
#include <cmath>

#include "base/philox.h"

namespace flywheel::train {
namespace {

using model::Op;
using model::WeightKind;
using model::WeightRole;

constexpr uint64_t kInitStream = 0x696e6974;     // Philox stream of the initial weights
constexpr uint64_t kAdapterStream = 0x61646170;  // ... and of an adapter's

// At once or after an exchange.
std::vector<bool> residual_matrices(const LocalDecoder& decoder) {
  std::vector<bool> result(decoder.weights.size(), false);
  std::vector<std::vector<int>> weights_of(decoder.values.size());  // the matrices that made a value
  for (const LocalStep& step : decoder.steps) {
    const bool passes = step.exchange != Exchange::kNone || step.bias_alone;
    auto& made_by = weights_of[static_cast<size_t>(step.out)];
    if (passes) {
      made_by = weights_of[static_cast<size_t>(step.in[0])];
    } else if (step.op == Op::kLinear) {
      made_by = {step.weight};
    } else if (step.op == Op::kExperts) {
      for (const model::ExpertWeights& expert : step.experts) made_by.push_back(expert.down);
    } else if (step.op == Op::kAdd || step.op == Op::kGatedAdd) {
      for (const int in : step.in) {
        for (const int w : weights_of[static_cast<size_t>(in)]) result[static_cast<size_t>(w)] = true;
      }
    }
  }
  return result;
}

}  // namespace

InitialWeights::InitialWeights(const LocalDecoder& decoder, uint64_t seed)
    : decoder_(decoder),
      seed_(seed),
      residual_(residual_matrices(decoder)),
      shrink_(1.0 / std::sqrt(2.0 * static_cast<double>(std::max<int64_t>(1, decoder.config.num_layers)))) {}

std::vector<float> InitialWeights::draw(const FlatWeight& place) const {
  const model::WeightInfo& info = decoder_.weights[place.index];
  const auto whole = static_cast<uint64_t>(decoder_.shards[place.index].whole);
  std::vector<float> drawn(static_cast<size_t>(place.whole_count()),
                           info.kind == WeightKind::kNorm ? 1.0f : 0.0f);
  if (info.role == WeightRole::kLowRankIn) {
    Philox rng(seed_, kAdapterStream + whole);
    const float bound = 1 / std::sqrt(static_cast<float>(place.shape[1]));
    for (float& w : drawn) w = bound * (2 * rng.uniform() - 1);
  } else if (info.role == WeightRole::kTrained && info.kind == WeightKind::kMatrix) {
    Philox rng(seed_, kInitStream + whole);
    const auto deviation = static_cast<float>(0.02 * (residual_[place.index] ? shrink_ : 1.0));
    for (float& w : drawn) w = rng.normal() * deviation;
  }
  return drawn;
}

Result<model::Tensor> find_tensor(const model::WeightSource& source, const FlatWeight& weight) {
  ASSIGN_OR_RETURN(model::Tensor tensor, source.tensor(weight.name));
  if (tensor.shape == weight.shape) return tensor;
  return make_error(ErrorCode::kInvalid, "{}: {} has another shape than the model's config says",
                    source.path(), weight.name);
}

}  // namespace flywheel::train
