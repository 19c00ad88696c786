// The product of quantized inputs with a packed quantized weight, written once over lanes.
//
// Inputs: each row is cut into blocks of 32, quantized to int8 with a scale of their own (d = max|x| / 127).
// For one block, with integer sums that are exact in any order:
//   y[n] += (w_scale[n] * d) * sum_k (q_w[n][k] * q_x[k])  +  w_min[n] * (d * sum_k q_x[k])
// Blocks (sub-blocks of 16 where the weight's scales are that fine) are added in order of k with one rounding
// for each multiplication and addition, so a row has the same bits in every variant, at any M.
#pragma once

#include "kernels/quant_lanes_internal.h"
#include "kernels/quant_pack_internal.h"

namespace flywheel::kernels {

// 32 columns of R input rows, as the kernel reads them. A tile of R rows takes consecutive blocks.
template <int R>
struct QuantInput {
  int8_t q[kQuantColumns / kGroup][R][kGroup];
  float d[R];
  int32_t start[2][R];  // of the integer sum of each half (of the whole, in [0]): undoes lowest_q
  float d_sum[2][R];    // d * the sum of q
};
inline constexpr int64_t kInputBytesPerRow = sizeof(QuantInput<1>);
static_assert(sizeof(QuantInput<8>) == 8 * sizeof(QuantInput<1>));

struct QuantPiece {
  float* y;  // [rows, N], row stride N; columns from 16 * first_tile
  int64_t rows, N, K;
  const uint8_t* x;  // from quantize_rows: tiles of kRows, then of the remainder's powers of two
  const uint8_t* packed;
  const QuantLayout* layout;
  int64_t first_tile, last_tile;  // [first, last)
};

struct QuantTable {
  int rows_per_tile;
  // `rows` rows of x (stride K) as one tile: 1, 2, 4 or 8, not above rows_per_tile.
  void (*quantize_tile)(uint8_t* out, const float* x, int rows, int64_t K, DType weight);
  void (*gemm[kQuantTypes])(const QuantPiece&);
};
const QuantTable& quant_table_baseline();
const QuantTable& quant_table_avx2();
const QuantTable& quant_table_avx512();

// The largest power of two that is at most `rows` and `most`.
constexpr int next_tile(int64_t rows, int most) {
  int r = most;
  while (r > rows) r /= 2;
  return r;
}

template <typename L, int R>
void quantize_tile_of(uint8_t* out, const float* x, int64_t K, const QuantFormat& format) {
  using Q = QuantLanes<L>;
  const bool whole = format.sub_elements == kQuantColumns;
  const int lowest = Q::kSignedBytes && format.lowest_q == -128 ? 0 : format.lowest_q;
  auto* block = reinterpret_cast<QuantInput<R>*>(out);
  for (int64_t k = 0; k < K; k += kQuantColumns, ++block) {
    for (int r = 0; r < R; ++r) {
      const float* from = x + r * K + k;
      const uint32_t most_bits = Q::max_bits32(from);
      float most;
      std::memcpy(&most, &most_bits, sizeof most);
      alignas(32) int8_t q[kQuantColumns];
      int32_t sum[2] = {0, 0};
      if (most >= 0x1p-100f && most_bits < 0x7f800000) {
        const float inverse = 127.0f / most;
        sum[0] = Q::quantize16(q, from, inverse);
        sum[1] = Q::quantize16(q + 16, from + 16, inverse);
        block->d[r] = most / 127.0f;
      } else {  // too small to matter, or infinite or NaN: then NaN comes out
        std::memset(q, 0, sizeof q);
        block->d[r] = most_bits < 0x7f800000 ? 0.0f : __builtin_nanf("");
      }
      for (int g = 0; g < kQuantColumns / kGroup; ++g) std::memcpy(block->q[g][r], q + g * kGroup, kGroup);
      if (whole) sum[0] += sum[1], sum[1] = 0;
      for (int h = 0; h < 2; ++h) {
        block->start[h][r] = lowest * sum[h];
        block->d_sum[h][r] = block->d[r] * static_cast<float>(sum[h]);
      }
    }
  }
}

template <typename L>
void quantize_tile(uint8_t* out, const float* x, int rows, int64_t K, DType weight) {
  const QuantFormat& format = kQuantFormats[static_cast<int>(weight) - static_cast<int>(kFirstQuantized)];
  if constexpr (QuantLanes<L>::kRows >= 8) {
    if (rows == 8) return quantize_tile_of<L, 8>(out, x, K, format);
  }
  if constexpr (QuantLanes<L>::kRows >= 4) {
    if (rows == 4) return quantize_tile_of<L, 4>(out, x, K, format);
    if (rows == 2) return quantize_tile_of<L, 2>(out, x, K, format);
  }
  quantize_tile_of<L, 1>(out, x, K, format);
}

// Group g's weights of a quants block.
template <typename L, int bits, int g>
[[gnu::always_inline]] inline typename QuantLanes<L>::W group_weights(const uint8_t* quants) {
  using Q = QuantLanes<L>;
  if constexpr (bits == 8) return Q::load(quants + g * 64);
  const auto pair = Q::load(quants + g % 4 * 64);
  const auto low = g < 4 ? Q::mask(pair, 15) : Q::mask(Q::template shift_right<4>(pair), 15);
  if constexpr (bits == 4) return low;
  if constexpr (bits == 6) {
    const auto tops = Q::load(quants + (4 + g / 4) * 64);
    if constexpr (g % 4 == 3) return Q::either(low, Q::mask(Q::template shift_right<2>(tops), 0x30));
    if constexpr (g % 4 == 2) return Q::either(low, Q::mask(tops, 0x30));
    if constexpr (g % 4 == 1) return Q::either(low, Q::mask(Q::template shift_left<2>(tops), 0x30));
    if constexpr (g % 4 == 0) return Q::either(low, Q::mask(Q::template shift_left<4>(tops), 0x30));
  }
}

template <typename L, const QuantFormat& format, int g, int R>
[[gnu::always_inline]] inline void add_group(typename QuantLanes<L>::I (&sums)[R], const uint8_t* quants,
                                             const QuantInput<R>& x) {
  using Q = QuantLanes<L>;
  auto w = group_weights<L, format.bits, g>(quants);
  constexpr bool kFullBytes = format.lowest_q == -128;
  if constexpr (kFullBytes) w = Q::as_signed(w);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if constexpr (kFullBytes) {
      sums[r] = Q::dot_bytes(sums[r], w, x.q[g][r]);
    } else {
      sums[r] = Q::dot(sums[r], w, x.q[g][r]);
    }
  }
}

// One tile of 16 outputs against one tile of R input rows.
template <typename L, const QuantFormat& format, int R>
[[gnu::noinline]] void quant_tile(const QuantPiece& p, const QuantInput<R>* x, float* y, int64_t tile) {
  using Q = QuantLanes<L>;
  using F = typename L::F;
  constexpr int kBlocks = format.elements / kQuantColumns, kSubs = kQuantColumns / format.sub_elements;
  const uint8_t* quants = p.packed + tile * p.layout->quants_bytes;
  const auto* d = reinterpret_cast<const uint16_t*>(p.packed + p.layout->d_at + tile * p.layout->d_bytes);
  const auto* dmin =
      reinterpret_cast<const uint16_t*>(p.packed + p.layout->dmin_at + tile * p.layout->d_bytes);
  const auto* scale =
      reinterpret_cast<const int8_t*>(p.packed + p.layout->scale_at + tile * p.layout->scale_bytes);
  const auto* min =
      reinterpret_cast<const int8_t*>(p.packed + p.layout->min_at + tile * p.layout->scale_bytes);
  F acc[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r] = L::zero();
  for (int64_t k = 0; k < p.K; k += format.elements, d += kTileRows, dmin += kTileRows) {
    const F d_w = L::load_f16(d);
    F dmin_w = L::zero();
    if constexpr (format.has_min) dmin_w = L::load_f16(dmin);
    for (int b = 0; b < kBlocks; ++b, ++x, quants += quant_vectors(format) * 64) {
      typename Q::I sums[R];
      const auto finish = [&](int half) __attribute__((always_inline)) {
        F w = d_w, m = dmin_w;
        if constexpr (format.has_sub_scales) {
          w = L::mul(d_w, Q::load_i8(scale));
          scale += kTileRows;
          if constexpr (format.has_min) {
            m = L::mul(dmin_w, Q::load_i8(min));
            min += kTileRows;
          }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          acc[r] = L::add(acc[r], L::mul(Q::to_float(sums[r]), L::mul(w, L::set1(x->d[r]))));
          if constexpr (format.has_min) acc[r] = L::add(acc[r], L::mul(m, L::set1(x->d_sum[half][r])));
        }
      };
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r] = Q::set1(format.lowest_q == 0 ? 0 : x->start[0][r]);
      add_group<L, format, 0>(sums, quants, *x);
      add_group<L, format, 1>(sums, quants, *x);
      add_group<L, format, 2>(sums, quants, *x);
      add_group<L, format, 3>(sums, quants, *x);
      if constexpr (kSubs == 2) {
        finish(0);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r] = Q::set1(format.lowest_q == 0 ? 0 : x->start[1][r]);
      }
      add_group<L, format, 4>(sums, quants, *x);
      add_group<L, format, 5>(sums, quants, *x);
      add_group<L, format, 6>(sums, quants, *x);
      add_group<L, format, 7>(sums, quants, *x);
      finish(kSubs - 1);
    }
  }
  const int64_t column = tile * kTileRows;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    L::store_first(y + r * p.N + column, acc[r], static_cast<int>(p.N - column < 16 ? p.N - column : 16));
  }
}

template <typename L, const QuantFormat& format, int R>
[[gnu::always_inline]] inline void quant_rows(const QuantPiece& p, int64_t row, int64_t tile) {
  const auto* x =
      reinterpret_cast<const QuantInput<R>*>(p.x + row * (p.K / kQuantColumns) * kInputBytesPerRow);
  quant_tile<L, format, R>(p, x, p.y + row * p.N, tile);
}

// All rows of the piece: 64 at a time, so that their inputs stay in the second-level cache while the weights
// of a tile stay in the first.
template <typename L, const QuantFormat& format>
void quant_gemm(const QuantPiece& p) {
  constexpr int kMost = QuantLanes<L>::kRows;
  constexpr int64_t kRowsAtOnce = 64;
  for (int64_t begin = 0; begin < p.rows; begin += kRowsAtOnce) {
    const int64_t end = begin + kRowsAtOnce < p.rows ? begin + kRowsAtOnce : p.rows;
    for (int64_t tile = p.first_tile; tile < p.last_tile; ++tile) {
      for (int64_t row = begin; row < end;) {
        const int rows = next_tile(end - row, kMost);
        if constexpr (kMost >= 8) {
          if (rows == 8) quant_rows<L, format, 8>(p, row, tile);
        }
        if constexpr (kMost >= 4) {
          if (rows == 4) quant_rows<L, format, 4>(p, row, tile);
          if (rows == 2) quant_rows<L, format, 2>(p, row, tile);
        }
        if (rows == 1) quant_rows<L, format, 1>(p, row, tile);
        row += rows;
      }
    }
  }
}

template <typename L>
constexpr QuantTable make_quant_table() {
  return {QuantLanes<L>::kRows,
          quantize_tile<L>,
          {quant_gemm<L, kQuantFormats[0]>, quant_gemm<L, kQuantFormats[1]>, quant_gemm<L, kQuantFormats[2]>,
           quant_gemm<L, kQuantFormats[3]>, quant_gemm<L, kQuantFormats[4]>, quant_gemm<L, kQuantFormats[5]>,
           quant_gemm<L, kQuantFormats[6]>, quant_gemm<L, kQuantFormats[7]>, quant_gemm<L, kQuantFormats[8]>,
           quant_gemm<L, kQuantFormats[9]>}};
}

}  // namespace flywheel::kernels
