// The matrix product's inner part: y[r][c] (+)= sum over steps s of a[r][s] * b[s][c].
//
// b is in panels of 16 columns, [steps][16]: a step is one k (f32, f16) or two (bf16: 16 pairs). a's element
// is 4 bytes: a float, or two bf16; its rows lie one after the other, or in panels as b's columns do. A tile
// of rows x panels stays in registers over all steps, so each y is one chain over s = 0, 1, 2, ... whatever
// the tile.
#pragma once

#include "kernels/lanes_internal.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {

template <typename L>
struct GemmF32 {
  static constexpr int kStepBytes = 64;
  static constexpr bool kIsPair = false;
  using B = typename L::F;
  LANES_INLINE B load(const uint8_t* p) { return L::load(reinterpret_cast<const float*>(p)); }
  LANES_INLINE typename L::F multiply_add(typename L::F acc, B b, const uint32_t* a) {
    float x;
    std::memcpy(&x, a, 4);
    return L::fma(L::set1(x), b, acc);
  }
};

template <typename L>
struct GemmF16 : GemmF32<L> {
  static constexpr int kStepBytes = 32;
  LANES_INLINE typename L::F load(const uint8_t* p) {
    return L::load_f16(reinterpret_cast<const uint16_t*>(p));
  }
};

template <typename L>
struct GemmBf16 {
  static constexpr int kStepBytes = 64;
  static constexpr bool kIsPair = true;
  using B = typename L::I;
  LANES_INLINE B load(const uint8_t* p) { return L::load_bits(p); }
  LANES_INLINE typename L::F multiply_add(typename L::F acc, B b, const uint32_t* a) {
    return L::dot_bf16(acc, b, L::set1_bits(*a));
  }
};

template <typename L, typename Kind, int kRows, int kPanels, int kStride>
void gemm_tile(const GemmPiece& g, const uint32_t* const* a_rows, float* y, const uint8_t* b,
               int last_columns) {
  using F = typename L::F;
  F acc[kRows][kPanels];
  for (int p = 0; p < kPanels; ++p) {
    const int columns = p + 1 < kPanels ? 16 : last_columns;
    for (int r = 0; r < kRows; ++r) {
      acc[r][p] = g.accumulate ? L::load_first(y + r * g.y_stride + p * 16, columns) : L::zero();
    }
  }
  const uint32_t* a[kRows];
  for (int r = 0; r < kRows; ++r) a[r] = a_rows[r];
  const uint8_t* panel[kPanels];
  for (int p = 0; p < kPanels; ++p) panel[p] = b + p * g.b_panel_stride;
  for (int64_t s = 0; s < g.steps; ++s) {
    typename Kind::B w[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) w[p] = Kind::load(panel[p] + s * Kind::kStepBytes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) acc[r][p] = Kind::multiply_add(acc[r][p], w[p], a[r] + s * kStride);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p + 1 < kPanels; ++p) L::store(y + r * g.y_stride + p * 16, acc[r][p]);
    L::store_first(y + r * g.y_stride + (kPanels - 1) * 16, acc[r][kPanels - 1], last_columns);
  }
}

// The tile with `rows` (1..kRows) rows.
template <typename L, typename Kind, int kRows, int kPanels, int kStride>
void gemm_rows(const GemmPiece& g, int rows, const uint32_t* const* a, float* y, const uint8_t* b, int last) {
  if (rows == kRows) return gemm_tile<L, Kind, kRows, kPanels, kStride>(g, a, y, b, last);
  if constexpr (kRows > 1) gemm_rows<L, Kind, kRows - 1, kPanels, kStride>(g, rows, a, y, b, last);
}

template <typename L, typename Kind, int kPanels, int kStride>
void gemm_panels(const GemmPiece& g, const uint8_t* b, float* y, int last) {
  constexpr int kRows = L::kTileRows[kPanels];
  for (int64_t row = 0; row < g.rows;) {
    int rows = static_cast<int>(g.rows - row < kRows ? g.rows - row : kRows);
    const uint32_t* a[kRows];
    for (int r = 0; r < rows; ++r) {
      a[r] = kStride == 1 ? g.a + (row + r) * g.a_row_stride
                          : g.a + (row + r) / 16 * g.a_panel_stride + (row + r) % 16;
    }
    gemm_rows<L, Kind, kRows, kPanels, kStride>(g, rows, a, y + row * g.y_stride, b, last);
    row += rows;
  }
}

template <typename L, typename Kind, int kPanels>
void gemm_from(const GemmPiece& g, int64_t panels, int64_t panel, int last) {
  if (panels != kPanels) {
    if constexpr (kPanels > 1) gemm_from<L, Kind, kPanels - 1>(g, panels, panel, last);
    return;
  }
  const uint8_t* b = g.b + panel * g.b_panel_stride;
  float* y = g.y + panel * 16;
  if (g.a_in_panels) {
    gemm_panels<L, Kind, kPanels, 16>(g, b, y, last);
  } else {
    gemm_panels<L, Kind, kPanels, 1>(g, b, y, last);
  }
}

template <typename L, typename Kind>
void gemm(const GemmPiece& g) {
  const int64_t panels = (g.columns + 15) / 16;
  for (int64_t panel = 0; panel < panels;) {
    const int64_t here = panels - panel < L::kTilePanels ? panels - panel : L::kTilePanels;
    const bool at_end = panel + here == panels;
    gemm_from<L, Kind, L::kTilePanels>(g, here, panel,
                                       at_end ? static_cast<int>(g.columns - (panels - 1) * 16) : 16);
    panel += here;
  }
}

// A tile of the largest size that multiplies what is in registers. Returns the operations done. The sums
// begin with different values, or the compiler would see that all are one and compute that alone.
template <typename L, typename Kind>
double spin(int64_t rounds) {
  constexpr int kRows = L::kTileRows[L::kTilePanels], kPanels = L::kTilePanels;
  alignas(64) uint8_t b[64] = {};
  uint32_t a = 0;
  typename L::F acc[kRows][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) acc[r][p] = L::set1(static_cast<float>(r * kPanels + p));
  }
  auto w = Kind::load(b);
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+m"(a));  // the factor may have changed: nothing moves out of the loop
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) acc[r][p] = Kind::multiply_add(acc[r][p], w, &a);
    }
  }
  typename L::F sum = L::zero();
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) sum = L::add(sum, acc[r][p]);
  }
  const double per_step = Kind::kIsPair ? 64 : 32;
  return static_cast<double>(rounds) * kRows * kPanels * per_step + static_cast<double>(L::sum(sum));
}

// Four streams at once, as the product of one row reads four panels.
template <typename L>
float read_all(const float* x, int64_t n) {
  typename L::F sum[4] = {L::zero(), L::zero(), L::zero(), L::zero()};
  const int64_t quarter = n / 4;
  for (int64_t i = 0; i + 16 <= quarter; i += 16) {
    for (int j = 0; j < 4; ++j) sum[j] = L::add(sum[j], L::load(x + j * quarter + i));
  }
  return L::sum(L::add(L::add(sum[0], sum[1]), L::add(sum[2], sum[3])));
}

template <typename L>
void row_to_bf16(uint16_t* out, const float* in, int64_t K) {
  int64_t k = 0;
  for (; k + 16 <= K; k += 16) L::store_bf16(out + k, L::load(in + k));
  if (k < K) {
    uint16_t tail[16];
    L::store_bf16(tail, L::load_first(in + k, static_cast<int>(K - k)));
    const int64_t rest = (K - k + 1) / 2 * 2;
    std::memcpy(out + k, tail, static_cast<size_t>(rest) * 2);
  }
}

template <typename L>
void pack_columns_f32(float* panel, const float* x, int64_t x_stride, int64_t M, int columns) {
  for (int64_t m = 0; m < M; ++m) L::store(panel + m * 16, L::load_first(x + m * x_stride, columns));
}

template <typename L>
void pack_columns_bf16(uint32_t* panel, const float* x, int64_t x_stride, int64_t M, int columns) {
  for (int64_t m = 0; m < M; m += 2) {
    const typename L::F low = L::load_first(x + m * x_stride, columns);
    const typename L::F high = m + 1 < M ? L::load_first(x + (m + 1) * x_stride, columns) : L::zero();
    L::store_bits(panel + m / 2 * 16, L::pair_bf16(low, high));
  }
}

}  // namespace flywheel::kernels
