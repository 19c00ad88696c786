// RMSNorm on a device: the maths of norm.h over bf16 rows, sums and weights in f32. A row's bits do not
// depend on T.
//
// Bytes of a row of D: forward 4 D (x read, y written); with the residual's addition 8 D (x, delta; sum, y);
// backward 8 D (dy, x, residual; dx), and at most kRowParts rows of f32 parts of dweight. Memory alone is the
// limit: some ten operations a value.
#include "kernels/device_rows_internal.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

// What a thread has of its row.
template <typename Shape>
struct Part {
  int64_t row;    // over T * H
  int64_t first;  // column of its first vector
  __device__ explicit Part(int64_t first_row)
      : row(first_row + threadIdx.x / Shape::kThreads), first(threadIdx.x % Shape::kThreads * 8) {}
  __device__ int64_t column(int i) const { return first + static_cast<int64_t>(i) * Shape::kThreads * 8; }
};

template <typename Shape>
__device__ inline float sum_of_squares(const Vec8 (&values)[Shape::kVectors], const Part<Shape>& part,
                                       bool has_row, int64_t D) {
  float squares = 0;
  UNROLL for (int i = 0; i < Shape::kVectors; ++i) {
    if (!has_row || part.column(i) >= D) continue;
    UNROLL for (int j = 0; j < 8; ++j) {
      const float v = to_float(values[i].v[j]);
      squares = fmaf(v, v, squares);
    }
  }
  return row_sum<Shape>(squares);
}

// The vector of y at column d.
__device__ inline Vec8 normed(const Vec8& x, float inverse, const float* weight_D, int64_t d) {
  const Vec4f w[2] = {load4(weight_D + d), load4(weight_D + d + 4)};
  Vec8 y;
  UNROLL for (int j = 0; j < 8; ++j) y.v[j] = to_bf16(to_float(x.v[j]) * inverse * w[j / 4].v[j % 4]);
  return y;
}

// With delta: of the sum of x and delta, which is written to `sum`.
template <typename Shape>
__global__ void __launch_bounds__(Shape::kBlock)
    rms_norm_rows(Rows y, Rows sum, float* inverse_TH, ConstRows x, const bf16* delta_TD,
                  const float* weight_D, int64_t T, int64_t H, int64_t D, float epsilon) {
  const Part<Shape> part(static_cast<int64_t>(blockIdx.x) * Shape::kRows);
  const bool has_row = part.row < T * H;
  const int64_t t = part.row / H, h = part.row % H;
  Vec8 values[Shape::kVectors];
  UNROLL for (int i = 0; i < Shape::kVectors; ++i) {
    const int64_t d = part.column(i);
    if (!has_row || d >= D) continue;
    values[i] = load8(x.data + t * x.stride + h * D + d);
    if (delta_TD == nullptr) continue;
    const Vec8 delta = load8(delta_TD + part.row * D + d);
    UNROLL for (int j = 0; j < 8; ++j) {
      values[i].v[j] = to_bf16(to_float(values[i].v[j]) + to_float(delta.v[j]));
    }
    store8(sum.data + part.row * D + d, values[i]);
  }
  const float squares = sum_of_squares<Shape>(values, part, has_row, D);
  if (!has_row) return;
  const float inverse = 1.0f / sqrtf(squares / static_cast<float>(D) + epsilon);
  if (part.first == 0 && inverse_TH != nullptr) inverse_TH[part.row] = inverse;
  UNROLL for (int i = 0; i < Shape::kVectors; ++i) {
    const int64_t d = part.column(i);
    if (d < D) store8(y.data + t * y.stride + h * D + d, normed(values[i], inverse, weight_D, d));
  }
}

void start_rms_norm(DeviceStream stream, Rows y, Rows sum, float* inverse_TH, ConstRows x,
                    const bf16* delta_TD, const float* weight_D, int64_t T, int64_t H, int64_t D,
                    float epsilon) {
  DEVICE_CHECK(x.stride % 8 == 0 && y.stride % 8 == 0);
  for_row_shape(D, [&](auto shape) {
    using Shape = decltype(shape);
    if (T * H == 0) return;
    LAUNCH(rms_norm_rows<Shape>, static_cast<unsigned>(ceil_div(T * H, Shape::kRows)), Shape::kBlock, 0,
           stream)
    (y, sum, inverse_TH, x, delta_TD, weight_D, T, H, D, epsilon);
  });
}

void rms_norm(DeviceStream stream, Rows y, float* inverse_TH, ConstRows x, const float* weight_D, int64_t T,
              int64_t H, int64_t D, float epsilon) {
  start_rms_norm(stream, y, {nullptr, D}, inverse_TH, x, nullptr, weight_D, T, H, D, epsilon);
}

void add_rms_norm(DeviceStream stream, bf16* y_TD, bf16* sum_TD, float* inverse_T, const bf16* x_TD,
                  const bf16* delta_TD, const float* weight_D, int64_t T, int64_t D, float epsilon) {
  start_rms_norm(stream, {y_TD, D}, {sum_TD, D}, inverse_T, {x_TD, D}, delta_TD, weight_D, T, 1, D, epsilon);
}

// With r = 1/rms and g = dy * weight: dx = r * (g - x * r^2 * mean(g * x)); dweight += dy * x * r. A block
// takes every gridDim-th group of rows and sums its rows' dweight in registers, then over its warps: a row of
// `parts`.
template <typename Shape>
__global__ void __launch_bounds__(Shape::kBlock)
    rms_norm_backward_rows(Rows dx, float* parts, ConstRows dy, ConstRows residual, ConstRows x,
                           const float* inverse_TH, const float* weight_D, int64_t T, int64_t H, int64_t D) {
  constexpr int kVectors = Shape::kVectors;
  float dweight[kVectors * 8] = {};
  const int64_t step = static_cast<int64_t>(gridDim.x) * Shape::kRows;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * Shape::kRows; base < T * H; base += step) {
    const Part<Shape> part(base);
    const bool has_row = part.row < T * H;
    const int64_t t = part.row / H, h = part.row % H;
    const float r = has_row ? inverse_TH[part.row] : 0.0f;
    Vec8 dys[kVectors], xs[kVectors];
    float dot = 0;
    UNROLL for (int i = 0; i < kVectors; ++i) {
      const int64_t d = part.column(i);
      if (!has_row || d >= D) continue;
      dys[i] = load8(dy.data + t * dy.stride + h * D + d), xs[i] = load8(x.data + t * x.stride + h * D + d);
      const Vec4f w[2] = {load4(weight_D + d), load4(weight_D + d + 4)};
      UNROLL for (int j = 0; j < 8; ++j) {
        const float dyv = to_float(dys[i].v[j]), xv = to_float(xs[i].v[j]);
        dot = fmaf(dyv * w[j / 4].v[j % 4], xv, dot);
        dweight[i * 8 + j] = fmaf(dyv * xv, r, dweight[i * 8 + j]);
      }
    }
    const float pull = -r * r * r * (row_sum<Shape>(dot) / static_cast<float>(D));
    if (!has_row) continue;
    UNROLL for (int i = 0; i < kVectors; ++i) {
      const int64_t d = part.column(i);
      if (d >= D) continue;
      const Vec4f w[2] = {load4(weight_D + d), load4(weight_D + d + 4)};
      Vec8 more;
      if (residual.data != nullptr) more = load8(residual.data + t * residual.stride + h * D + d);
      UNROLL for (int j = 0; j < 8; ++j) {
        const float g = to_float(dys[i].v[j]) * w[j / 4].v[j % 4];
        float gradient = fmaf(to_float(xs[i].v[j]), pull, g * r);
        if (residual.data != nullptr) gradient += to_float(more.v[j]);
        dys[i].v[j] = to_bf16(gradient);
      }
      store8(dx.data + t * dx.stride + h * D + d, dys[i]);
    }
  }
  if (parts == nullptr) return;
  float* part_D = parts + static_cast<int64_t>(blockIdx.x) * D;
  const Part<Shape> part(0);
  if constexpr (Shape::kRows == 1) {
    UNROLL for (int i = 0; i < kVectors * 8; ++i) {
      if (part.column(i / 8) < D) part_D[part.column(i / 8) + i % 8] = dweight[i];
    }
  } else {
    float* of_warps = dynamic_shared<float>();  // [warps, D]
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    UNROLL for (int i = 0; i < kVectors * 8; ++i) {
      // Rows that share a warp.
      UNROLL for (int mask = Shape::kThreads; mask < kWarp; mask *= 2) {
        dweight[i] += __shfl_xor_sync(kAllLanes, dweight[i], mask);
      }
      const bool first_row = static_cast<int>(threadIdx.x) % kWarp < Shape::kThreads;
      if (first_row && part.column(i / 8) < D) of_warps[warp * D + part.column(i / 8) + i % 8] = dweight[i];
    }
    __syncthreads();
    for (int64_t d = threadIdx.x; d < D; d += Shape::kBlock) {
      float sum = 0;
      for (int w = 0; w < Shape::kBlock / kWarp; ++w) sum += of_warps[w * D + d];
      part_D[d] = sum;
    }
  }
}

void rms_norm_backward(DeviceStream stream, Rows dx, float* dweight_D, float* workspace, ConstRows dy,
                       ConstRows residual, ConstRows x, const float* inverse_TH, const float* weight_D,
                       int64_t T, int64_t H, int64_t D) {
  DEVICE_CHECK(dx.stride % 8 == 0 && dy.stride % 8 == 0 && residual.stride % 8 == 0 && x.stride % 8 == 0);
  DEVICE_CHECK(dweight_D == nullptr || workspace != nullptr);
  for_row_shape(D, [&](auto shape) {
    using Shape = decltype(shape);
    if (T * H == 0) return;
    // 1024 threads on each of 132 multiprocessors: a constant, so that the sums' order is no machine's.
    const int64_t groups = ceil_div(T * H, Shape::kRows), most = kRowParts * 128 / Shape::kBlock;
    const int64_t blocks = groups < most ? groups : most;
    const int64_t shared = Shape::kRows == 1 ? 0 : Shape::kBlock / kWarp * D * 4;
    LAUNCH(rms_norm_backward_rows<Shape>, static_cast<unsigned>(blocks), Shape::kBlock, shared, stream)
    (dx, dweight_D == nullptr ? nullptr : workspace, dy, residual, x, inverse_TH, weight_D, T, H, D);
    if (dweight_D != nullptr) add_row_sums(stream, dweight_D, workspace, blocks, D);
  });
}

}  // namespace

void add_norm(DeviceTable& table) {
  table.rms_norm = rms_norm;
  table.add_rms_norm = add_rms_norm;
  table.rms_norm_backward = rms_norm_backward;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
