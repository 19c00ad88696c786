// The packed form of a quantized weight: GGUF's blocks rearranged so that 16 output rows lie side by side,
// one in each 32-bit lane, and the integer dot products of 16 rows advance together.
//
// A tile is 16 rows. Every section below holds tile after tile, within a tile block after block:
//   quants   of 32 columns: vectors of 64 bytes, 4 columns of each of the 16 rows; q - lowest_q, unsigned
//              8 bits  8 vectors: columns 4g..4g+3 in vector g
//              4 bits  4 vectors: columns 4g.. in the low nibbles of vector g, columns 16+4g.. in the high
//              6 bits  the low 4 bits as above, then 2 vectors: bits 2j of vector h belong to group 4h+j
//   d, dmin  f16 of 16 rows a block of the type
//   scale, min   int8 of 16 rows a sub-block (K-types)
// The bytes a weight takes are those of the file, give or take the 6-bit scales of K-types (5-bit, 2-bit and
// 3-bit types widen to 8, 4 and 4).
#pragma once

#include <cstdint>

#include "kernels/quant_block_internal.h"

namespace flywheel::kernels {

inline constexpr int kTileRows = 16;
inline constexpr int kGroup = 4;          // columns that one 32-bit lane takes at once
inline constexpr int kQuantColumns = 32;  // columns of a quants block and of a block of quantized inputs

constexpr int quant_vectors(const QuantFormat& format) {
  return format.bits;
}  // 64 bytes * 8 bits / 16 / 32

// Where the sections begin and how far a tile reaches in each.
struct QuantLayout {
  int64_t tiles;
  int64_t quants_bytes, d_bytes, scale_bytes;  // of one tile
  int64_t d_at, dmin_at, scale_at, min_at;     // quants are at 0
  int64_t total_bytes;
};
QuantLayout quant_layout(DType dtype, int64_t N, int64_t K);

}  // namespace flywheel::kernels
