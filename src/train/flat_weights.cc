#include "train/flat_weights.h"

#include <numeric>

#include "train/local_decoder.h"

namespace flywheel::train {

int64_t FlatWeight::whole_count() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

std::vector<FlatWeight> flat_weights(const std::vector<model::WeightInfo>& infos) {
  std::vector<FlatWeight> weights;
  for (const model::WeightInfo& info : infos) {
    FlatWeight weight{.name = info.name,
                      .shape = info.shape,
                      .matrix = info.kind == model::WeightKind::kMatrix,
                      .offset = flat_count(weights)};
    weight.count = weight.whole_count();
    weights.push_back(std::move(weight));
  }
  return weights;
}

std::vector<FlatWeight> flat_weights(const model::Decoder& decoder) {
  return flat_weights(decoder.weights);
}

std::vector<FlatWeight> flat_weights(const LocalDecoder& local) {
  std::vector<FlatWeight> weights = flat_weights(local.weights);
  for (size_t i = 0; i < weights.size(); ++i) {
    const WeightShard& shard = local.shards[i];
    weights[i].shape = local.whole_weights[static_cast<size_t>(shard.whole)].shape;
    if (shard.copies != WeightShard::Copies::kSplit) continue;
    weights[i].part = {.row_begin = shard.row_begin,
                       .row_end = shard.row_end,
                       .column_begin = shard.column_begin,
                       .column_end = shard.column_end};
  }
  return weights;
}

int64_t flat_count(const std::vector<FlatWeight>& weights) {
  return weights.empty() ? 0 : weights.back().offset + padded_count(weights.back().count);
}

void for_each_weight_run(const LocalDecoder& local, const std::function<void(int64_t, int64_t, int64_t)>& f) {
  const std::vector<FlatWeight> whole = flat_weights(local.whole_weights), own = flat_weights(local);
  for (size_t i = 0; i < own.size(); ++i) {
    const int64_t to = whole[static_cast<size_t>(local.shards[i].whole)].offset;
    for_each_run(own[i], [&](int64_t in_whole, int64_t in_part, int64_t count) {
      f(to + in_whole, own[i].offset + in_part, count);
    });
  }
}

}  // namespace flywheel::train
