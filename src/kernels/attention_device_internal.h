// What attention's forward and backward kernels on a GPU have in common: tiles of bf16 rows in shared memory,
// a warp's products of them, and which keys a query sees.
//
// A tile is rows of kDim values with 8 unused ones after each, so that the rows of a matrix that ldmatrix
// reads lie in different banks. A warp owns 16 * R rows of its block's result; its sums are R x N matrices of
// 16 x 8, of which a lane holds sums[r][n][0..3] as device_mma.h tells.
#pragma once

#include "kernels/device_mma.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {

constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = kAttentionWarps * kWarp;
constexpr float kLog2E = 1.44269504088896340736f;

template <int kDim>
constexpr int kTileStride = kDim + 8;

template <int kDim>
constexpr int64_t tile_bytes(int64_t rows) {
  return rows * kTileStride<kDim> * static_cast<int64_t>(sizeof(bf16));
}

inline void check_attention(const DeviceAttention& a) {
  DEVICE_CHECK(a.head_dim % 8 == 0 && a.head_dim <= 128);
  DEVICE_CHECK(a.B * a.T * a.heads < int64_t{1} << 31);
  DEVICE_CHECK(a.heads % a.kv_heads == 0 && a.scale > 0 && a.window >= 0);
  DEVICE_CHECK(a.q.stride % 8 == 0 && a.k.stride % 8 == 0 && a.v.stride % 8 == 0);
}

// Where the rows of a head of sequence b begin.
__device__ inline const bf16* rows_of(ConstRows rows, const DeviceAttention& a, int b, int head) {
  return rows.data + b * a.T * rows.stride + head * a.head_dim;
}
__device__ inline bf16* rows_of(Rows rows, const DeviceAttention& a, int b, int head) {
  return rows.data + b * a.T * rows.stride + head * a.head_dim;
}
// Rows of all heads without gaps, o and its gradient.
inline ConstRows without_gaps(const bf16* x_BTHD, const DeviceAttention& a) {
  return {x_BTHD, a.heads * a.head_dim};
}

// Query t of sequence b sees keys first(t) to t.
struct Sight {
  const int32_t* begins_BT;  // may be null
  int row, tokens, window;   // the sequence's first row

  __device__ Sight(const DeviceAttention& a, int b)
      : begins_BT(a.begins_BT),
        row(b * static_cast<int>(a.T)),
        tokens(static_cast<int>(a.T)),
        window(static_cast<int>(a.window)) {}
  __device__ int first(int t) const {
    int key = begins_BT == nullptr ? 0 : begins_BT[row + (t < tokens ? t : tokens - 1)];
    if (window > 0 && t - window + 1 > key) key = t - window + 1;
    return key;
  }
};

// Starts the copies of rows [first, first + kRows) into a tile; rows from `limit` on and columns from
// `head_dim` on become zeros.
template <int kRows, int kDim>
__device__ inline void load_tile(bf16* tile, const bf16* rows, int64_t stride, int first, int limit,
                                 int head_dim) {
  constexpr int kVectors = kDim / 8, kRowsAtOnce = kAttentionThreads / kVectors;
  static_assert(kAttentionThreads % kVectors == 0 && kRows % kRowsAtOnce == 0, "whole rounds of all threads");
  const int row = static_cast<int>(threadIdx.x) / kVectors,
            column = static_cast<int>(threadIdx.x) % kVectors * 8;
  NO_UNROLL for (int r = row; r < kRows; r += kRowsAtOnce) {
    const bool valid = first + r < limit && column < head_dim;
    cp_async_16(tile + r * kTileStride<kDim> + column, valid ? rows + (first + r) * stride + column : rows,
                valid);
  }
}

// The same for n values in f32.
__device__ inline void load_values(float* values, const float* from, int first, int limit, int n) {
  NO_UNROLL for (int i = static_cast<int>(threadIdx.x); i < n; i += kAttentionThreads) {
    const bool valid = first + i < limit;
    cp_async_4(values + i, valid ? from + first + i : from, valid);
  }
}

// sums += a * b^T: rows of a (the warp's own 16 * R) and 8 * N rows of b, over kDim.
template <int kDim, int R, int N>
__device__ inline void add_product(float (&sums)[R][N][4], const bf16* a, const bf16* b) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bf16* a_row = a + lane % 16 * kTileStride<kDim> + lane / 16 * 8;
  const bf16* b_row = b + (lane % 8 + lane / 16 * 8) * kTileStride<kDim> + lane / 8 % 2 * 8;
  UNROLL for (int k = 0; k < kDim; k += 16) {
    uint32_t of_a[R][4];
    UNROLL for (int r = 0; r < R; ++r) ldmatrix_x4(of_a[r], a_row + r * 16 * kTileStride<kDim> + k);
    UNROLL for (int n = 0; n < N; n += 2) {
      uint32_t of_b[4];
      ldmatrix_x4(of_b, b_row + n * 8 * kTileStride<kDim> + k);
      UNROLL for (int r = 0; r < R; ++r) {
        mma_m16n8k16(sums[r][n], of_a[r], of_b[0], of_b[1]);
        mma_m16n8k16(sums[r][n + 1], of_a[r], of_b[2], of_b[3]);
      }
    }
  }
}

// Sums as operands of the next product: two bf16 in a register, for a lane's two rows.
template <int R, int N>
__device__ inline void pack(uint32_t (&packed)[R][N][2], const float (&sums)[R][N][4]) {
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int n = 0; n < N; ++n) {
      packed[r][n][0] = pack_bf16(sums[r][n][0], sums[r][n][1]);
      packed[r][n][1] = pack_bf16(sums[r][n][2], sums[r][n][3]);
    }
  }
}

// sums += p * b: 8 * K columns of p and as many rows of b, kDim columns.
template <int kDim, int R, int K>
__device__ inline void add_weighted(float (&sums)[R][kDim / 8][4], const uint32_t (&p)[R][K][2],
                                    const bf16* b) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bf16* b_row = b + lane % 16 * kTileStride<kDim> + lane / 16 * 8;
  UNROLL for (int k = 0; k < K; k += 2) {
    uint32_t of_p[R][4];
    UNROLL for (int r = 0; r < R; ++r) {
      of_p[r][0] = p[r][k][0], of_p[r][1] = p[r][k][1];
      of_p[r][2] = p[r][k + 1][0], of_p[r][3] = p[r][k + 1][1];
    }
    UNROLL for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t of_b[4];
      ldmatrix_x4_transposed(of_b, b_row + k * 8 * kTileStride<kDim> + n * 8);
      UNROLL for (int r = 0; r < R; ++r) {
        mma_m16n8k16(sums[r][n], of_p[r], of_b[0], of_b[1]);
        mma_m16n8k16(sums[r][n + 1], of_p[r], of_b[2], of_b[3]);
      }
    }
  }
}

template <int R, int N>
__device__ inline void set_zero(float (&sums)[R][N][4]) {
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int n = 0; n < N; ++n) {
      UNROLL for (int i = 0; i < 4; ++i) sums[r][n][i] = 0;
    }
  }
}

// Rows [first, first + 16 * R) below `limit` of `rows` become sums * factors (one for each of a lane's rows),
// rounded, through `staging`: the same rows of a tile that no other warp reads.
template <int kDim, int R>
__device__ inline void store_rows(bf16* rows, int64_t stride, bf16* staging,
                                  const float (&sums)[R][kDim / 8][4], const float (&factors)[R][2],
                                  int first, int limit, int head_dim) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  __syncwarp();
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int n = 0; n < kDim / 8; ++n) {
      UNROLL for (int half = 0; half < 2; ++half) {
        const uint32_t pair =
            pack_bf16(sums[r][n][2 * half] * factors[r][half], sums[r][n][2 * half + 1] * factors[r][half]);
        std::memcpy(staging + (r * 16 + half * 8 + g) * kTileStride<kDim> + n * 8 + 2 * t, &pair,
                    sizeof pair);
      }
    }
  }
  __syncwarp();
  constexpr int kVectors = kDim / 8, kRowsAtOnce = kWarp / kVectors;
  const int column = lane % kVectors * 8;
  UNROLL for (int i = 0; i < 16 * R; i += kRowsAtOnce) {
    const int row = i + lane / kVectors;
    if (first + row < limit && column < head_dim) {
      store8(rows + (first + row) * stride + column, load8(staging + row * kTileStride<kDim> + column));
    }
  }
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
