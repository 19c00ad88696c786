#include "model/flat_buffer.h"

#include <algorithm>
#include <cstring>

namespace flywheel::model {

Result<void> FlatBuffer::add(const TorchTensor& tensor, const std::string& where) {
  if (!tensor.is_contiguous() || tensor.shape.size() != 1 || !tensor.dtype->dtype ||
      (dtype_ && *dtype_ != *tensor.dtype->dtype)) {
    return make_error(ErrorCode::kCorrupt, "{}: a partition is not flat, or of another dtype than others",
                      where);
  }
  dtype_ = tensor.dtype->dtype;
  pieces_.push_back({size_, tensor.contiguous_bytes()});
  size_ += tensor.elements();
  return {};
}

void FlatBuffer::slice(int64_t from, int64_t count, std::vector<std::span<const uint8_t>>& out) const {
  const int64_t width = kernels::block_bytes(dtype());
  auto piece = std::ranges::upper_bound(pieces_, from, {}, &Piece::at);
  if (piece != pieces_.begin()) --piece;
  for (; piece != pieces_.end() && piece->at < from + count; ++piece) {
    const int64_t length = static_cast<int64_t>(piece->bytes.size()) / width;
    const int64_t begin = std::max(from, piece->at), end = std::min(from + count, piece->at + length);
    if (begin >= end) continue;
    out.push_back(piece->bytes.subspan(static_cast<size_t>((begin - piece->at) * width),
                                       static_cast<size_t>((end - begin) * width)));
  }
}

void add_pieces(GatheredWeights& weights, TensorInfo info, std::vector<std::span<const uint8_t>> pieces) {
  const auto wanted = static_cast<size_t>(info.elements() * kernels::block_bytes(info.dtype));
  if (wanted == 0) {
    weights.add(std::move(info), std::span<const uint8_t>());
  } else if (pieces.size() == 1) {
    weights.add(std::move(info), pieces[0].first(wanted));
  } else {
    weights.add(std::move(info), [pieces = std::move(pieces)](std::span<uint8_t> out) -> Result<void> {
      for (const auto& piece : pieces) {
        const size_t count = std::min(piece.size(), out.size());
        if (count > 0) std::memcpy(out.data(), piece.data(), count);
        out = out.subspan(count);
      }
      return {};
    });
  }
}

}  // namespace flywheel::model
