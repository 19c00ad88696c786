// A buffer of weights one after another that lies in pieces, one with each rank: how ZeRO keeps them. Shared
// by the readers of checkpoints; not for other rooms.
//
// Ownership: views; the bytes are the caller's. Threads: one while adding, then any.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/gathered_weights.h"
#include "model/torch_file.h"

namespace flywheel::model {

class FlatBuffer {
 public:
  // The next piece: one dimension, of one dtype with the others, else kCorrupt.
  Result<void> add(const TorchTensor& tensor, const std::string& where);
  int64_t size() const { return size_; }  // in values
  kernels::DType dtype() const { return dtype_.value_or(kernels::DType::kF32); }

  // Appends the bytes of the values [from, from + count) that are there to `out`.
  void slice(int64_t from, int64_t count, std::vector<std::span<const uint8_t>>& out) const;

 private:
  struct Piece {
    int64_t at;
    std::span<const uint8_t> bytes;
  };
  std::vector<Piece> pieces_;
  int64_t size_ = 0;
  std::optional<kernels::DType> dtype_;
};

// A tensor of these bytes, one after another: a view where they are in one piece. What is longer is padding.
void add_pieces(GatheredWeights& weights, TensorInfo info, std::vector<std::span<const uint8_t>> pieces);

}  // namespace flywheel::model
