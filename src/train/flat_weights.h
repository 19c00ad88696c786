// Where weights lie in the trainer's flat buffers: those of a whole decoder, or the parts of them that one
// rank holds.
//
// A weight's values stand together, row after row; each weight begins at a whole vector of 16, with zeros
// between.
//
// Pure functions, any thread.
//
//   const std::vector<FlatWeight> weights = flat_weights(local_decoder);
//   std::vector<float> flat(flat_count(weights));
//   for_each_run(weights[3], [&](int64_t whole, int64_t part, int64_t count) { ... });
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/decoder.h"

namespace flywheel::train {

struct LocalDecoder;

// Values that a weight of `count` takes in the flat buffers.
inline int64_t padded_count(int64_t count) {
  return (count + 15) / 16 * 16;
}

struct FlatWeight {
  std::string name;
  std::vector<int64_t> shape;  // of the whole weight
  bool matrix = false;
  int64_t offset = 0, count = 0;  // of the values that are here
  // Of a weight that the tensor axis cuts: the rows and columns that are here.
  struct Part {
    int64_t row_begin = 0, row_end = 0, column_begin = 0, column_end = 1;
  };
  std::optional<Part> part = std::nullopt;
  int64_t whole_count() const;
};

std::vector<FlatWeight> flat_weights(const model::Decoder& decoder);
std::vector<FlatWeight> flat_weights(const std::vector<model::WeightInfo>& weights);
std::vector<FlatWeight> flat_weights(const LocalDecoder& local);
// Values of a flat buffer of all of them.
int64_t flat_count(const std::vector<FlatWeight>& weights);

// Calls f(place in the whole weight, place in what is here, count) for each run of values that lie together
// in both.
template <typename F>
void for_each_run(const FlatWeight& weight, const F& f) {
  if (!weight.part.has_value()) return f(int64_t{0}, int64_t{0}, weight.count);
  const FlatWeight::Part& p = *weight.part;
  const int64_t columns = weight.shape.size() > 1 ? weight.shape[1] : 1;
  const int64_t width = p.column_end - p.column_begin;
  if (width == columns) return f(p.row_begin * columns, int64_t{0}, weight.count);
  for (int64_t row = p.row_begin; row < p.row_end; ++row)
    f(row * columns + p.column_begin, (row - p.row_begin) * width, width);
}

// The same for all weights of a rank, in places of a flat buffer of the whole decoder and of the rank's.
void for_each_weight_run(const LocalDecoder& local, const std::function<void(int64_t, int64_t, int64_t)>& f);

}  // namespace flywheel::train
