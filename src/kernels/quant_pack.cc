#include "kernels/quant_pack_internal.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/quant.h"

namespace flywheel::kernels {
namespace {

int64_t aligned(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// Puts `value` (unsigned) for column c of a quants block and row r of the tile.
void put_quant(uint8_t* block, int bits, int c, int r, int value) {
  const int group = c / kGroup, byte = r * kGroup + c % kGroup;
  if (bits == 8) {
    block[group * 64 + byte] = static_cast<uint8_t>(value);
    return;
  }
  block[group % 4 * 64 + byte] |= static_cast<uint8_t>((value & 15) << (group / 4 * 4));
  if (bits == 6) block[(4 + group / 4) * 64 + byte] |= static_cast<uint8_t>(value >> 4 << (group % 4 * 2));
}

struct TileSections {
  uint8_t* quants;
  uint16_t *d, *dmin;
  int8_t *scale, *min;
};

// Adds block `i` (of the type's own blocks) of row r to its tile.
void put_block(const TileSections& tile, const QuantFormat& format, const QuantBlock& block, int64_t i,
               int r) {
  const int subs = format.elements / format.sub_elements;
  tile.d[i * kTileRows + r] = block.d;
  if (format.has_min) tile.dmin[i * kTileRows + r] = block.dmin;
  for (int s = 0; format.has_sub_scales && s < subs; ++s) {
    tile.scale[(i * subs + s) * kTileRows + r] = block.scale[s];
    if (format.has_min) tile.min[(i * subs + s) * kTileRows + r] = block.min[s];
  }
  const int64_t vectors = quant_vectors(format);
  for (int e = 0; e < format.elements; ++e) {
    const int64_t quants_block = (i * format.elements + e) / kQuantColumns;
    put_quant(tile.quants + quants_block * vectors * 64, format.bits, e % kQuantColumns, r,
              block.q[e] - format.lowest_q);
  }
}

}  // namespace

QuantLayout quant_layout(DType dtype, int64_t N, int64_t K) {
  const QuantFormat& format = quant_format(dtype);
  CHECK(K % format.elements == 0, "{} columns are not whole {} blocks", K, dtype_name(dtype));
  const int64_t blocks = K / format.elements, subs = K / format.sub_elements;
  QuantLayout layout{};
  layout.tiles = (N + kTileRows - 1) / kTileRows;
  layout.quants_bytes = K / kQuantColumns * quant_vectors(format) * 64;
  layout.d_bytes = blocks * kTileRows * 2;
  layout.scale_bytes = format.has_sub_scales ? subs * kTileRows : 0;
  layout.d_at = layout.tiles * layout.quants_bytes;
  layout.dmin_at = aligned(layout.d_at + layout.tiles * layout.d_bytes);
  layout.scale_at = aligned(layout.dmin_at + (format.has_min ? layout.tiles * layout.d_bytes : 0));
  layout.min_at = aligned(layout.scale_at + layout.tiles * layout.scale_bytes);
  layout.total_bytes = aligned(layout.min_at + (format.has_min ? layout.tiles * layout.scale_bytes : 0));
  return layout;
}

int64_t quant_packed_bytes(DType dtype, int64_t N, int64_t K) {
  return quant_layout(dtype, N, K).total_bytes;
}

void quant_pack(uint8_t* packed, DType dtype, const void* rows, int64_t N, int64_t K, ThreadPool& pool) {
  const QuantLayout layout = quant_layout(dtype, N, K);
  const QuantFormat& format = quant_format(dtype);
  const int64_t row_size = row_bytes(dtype, K), size = block_bytes(dtype);
  // Rows that fill the last tile have scale 0; quants are built by or-ing into zeros.
  std::memset(packed, 0, static_cast<size_t>(layout.total_bytes));
  pool.parallel_for(layout.tiles, 1, [&](int64_t begin, int64_t end) {
    QuantBlock block;
    for (int64_t t = begin; t < end; ++t) {
      const TileSections tile = {packed + t * layout.quants_bytes,
                                 reinterpret_cast<uint16_t*>(packed + layout.d_at + t * layout.d_bytes),
                                 reinterpret_cast<uint16_t*>(packed + layout.dmin_at + t * layout.d_bytes),
                                 reinterpret_cast<int8_t*>(packed + layout.scale_at + t * layout.scale_bytes),
                                 reinterpret_cast<int8_t*>(packed + layout.min_at + t * layout.scale_bytes)};
      const auto in_tile = static_cast<int>(std::min<int64_t>(kTileRows, N - t * kTileRows));
      for (int r = 0; r < in_tile; ++r) {
        const auto* row = static_cast<const uint8_t*>(rows) + (t * kTileRows + r) * row_size;
        for (int64_t i = 0; i < K / format.elements; ++i) {
          read_quant_block(block, dtype, row + i * size);
          put_block(tile, format, block, i, r);
        }
      }
    }
  });
}

}  // namespace flywheel::kernels
