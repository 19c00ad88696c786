// For .cu files whose threads share rows of D values, 8 at a time: how many threads have a row, and sums over
// it.
//
// A row of up to 1024 values belongs to some lanes of a warp, a longer one to a block. Every thread keeps its
// pieces of the row in registers: thread i of a row has the vectors i, i + kThreads, i + 2 kThreads, ...
//
//   using Shape = RowShape<256, 2>;              // 256 threads a row, 2 vectors each: D up to 4096
//   for_row_shape(D, [&](auto shape) { ...LAUNCH((kernel<decltype(shape)>), grid, shape.kBlock, ...) });
#pragma once

#include "kernels/device_code.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {

template <int kThreads_, int kVectors_>
struct RowShape {
  static constexpr int kThreads = kThreads_;                      // that share a row
  static constexpr int kVectors = kVectors_;                      // of 8 values, at most, of each
  static constexpr int kBlock = kThreads < 128 ? 128 : kThreads;  // threads of a block
  static constexpr int kRows = kBlock / kThreads;                 // rows that a block has at once
};

// Calls fn with the RowShape for rows of D values.
template <typename Fn>
void for_row_shape(int64_t D, Fn&& fn) {
  DEVICE_CHECK(D > 0 && D % 8 == 0 && D <= 16384);
  const int64_t vectors = D / 8;
  if (vectors <= 8) return fn(RowShape<8, 1>());
  if (vectors <= 16) return fn(RowShape<16, 1>());
  if (vectors <= 32) return fn(RowShape<32, 1>());
  if (vectors <= 64) return fn(RowShape<32, 2>());
  if (vectors <= 128) return fn(RowShape<32, 4>());
  if (vectors <= 256) return fn(RowShape<128, 2>());
  if (vectors <= 512) return fn(RowShape<256, 2>());
  if (vectors <= 1024) return fn(RowShape<256, 4>());
  return fn(RowShape<512, 4>());
}

// Over the threads of the caller's row; all of them get the same bits. All threads of the block call it.
template <typename Shape>
__device__ inline float row_sum(float x) {
  if constexpr (Shape::kThreads <= kWarp) {
    return warp_sum<Shape::kThreads>(x);
  } else {
    return block_sum<Shape::kThreads>(x);
  }
}

namespace {

// A block: 32 columns, and 32 threads for each of them, which take every 32nd row.
__global__ void __launch_bounds__(1024) add_row_sums_of(float* y_N, const float* x_MN, int64_t M, int64_t N) {
  SHARED_ARRAY(float, sums, 32 * 33);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  float sum = 0;
  if (column < N) {
    for (int64_t m = threadIdx.y; m < M; m += 32) sum += x_MN[m * N + column];
  }
  sums[threadIdx.x * 33 + threadIdx.y] = sum;
  __syncthreads();
  // Each warp sums one column.
  sum = warp_sum(sums[threadIdx.y * 33 + threadIdx.x]);
  const int64_t mine = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.y;
  if (threadIdx.x == 0 && mine < N) y_N[mine] += sum;
}

// y_N += the sum of x's rows, in an order that M alone decides.
inline void add_row_sums(DeviceStream stream, float* y_N, const float* x_MN, int64_t M, int64_t N) {
  LAUNCH(add_row_sums_of, static_cast<unsigned>(ceil_div(N, 32)), dim3(32, 32), 0, stream)(y_N, x_MN, M, N);
}

}  // namespace

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
