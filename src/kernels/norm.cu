// RMSNorm on a device: the maths of norm.h over bf16 rows, sums and weights in f32. A row's bits do not
// depend on T.
//
// Bytes, of T rows of D: forward 4 D a row (read x, write y). What limits is memory alone: a few operations a
// byte.
#include "kernels/device_rows_internal.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

template <typename Shape>
__global__ void __launch_bounds__(Shape::kBlock)
    rms_norm_rows(Rows y, float* inverse_TH, ConstRows x, const float* weight_D, int64_t T, int64_t H,
                  int64_t D, float epsilon) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * Shape::kRows + threadIdx.x / Shape::kThreads;
  const int64_t first = threadIdx.x % Shape::kThreads * 8;
  const bool has_row = row < T * H;
  const int64_t t = row / H, h = row % H;
  Vec8 values[Shape::kVectors];
  float squares = 0;
  UNROLL for (int i = 0; i < Shape::kVectors; ++i) {
    const int64_t d = first + static_cast<int64_t>(i) * Shape::kThreads * 8;
    if (!has_row || d >= D) continue;
    values[i] = load8(x.data + t * x.stride + h * D + d);
    UNROLL for (int j = 0; j < 8; ++j) {
      const float v = to_float(values[i].v[j]);
      squares = fmaf(v, v, squares);
    }
  }
  const float inverse = 1.0f / sqrtf(row_sum<Shape>(squares) / static_cast<float>(D) + epsilon);
  if (!has_row) return;
  if (first == 0 && inverse_TH != nullptr) inverse_TH[row] = inverse;
  UNROLL for (int i = 0; i < Shape::kVectors; ++i) {
    const int64_t d = first + static_cast<int64_t>(i) * Shape::kThreads * 8;
    if (d >= D) continue;
    const Vec4f w[2] = {load4(weight_D + d), load4(weight_D + d + 4)};
    UNROLL for (int j = 0; j < 8; ++j) {
      values[i].v[j] = to_bf16(to_float(values[i].v[j]) * inverse * w[j / 4].v[j % 4]);
    }
    store8(y.data + t * y.stride + h * D + d, values[i]);
  }
}

void rms_norm(DeviceStream stream, Rows y, float* inverse_TH, ConstRows x, const float* weight_D, int64_t T,
              int64_t H, int64_t D, float epsilon) {
  DEVICE_CHECK(x.stride % 8 == 0 && y.stride % 8 == 0);
  if (T * H == 0) return;
  for_row_shape(D, [&](auto shape) {
    using Shape = decltype(shape);
    LAUNCH(rms_norm_rows<Shape>, static_cast<unsigned>(ceil_div(T * H, Shape::kRows)), Shape::kBlock, 0,
           stream)
    (y, inverse_TH, x, weight_D, T, H, D, epsilon);
  });
}

}  // namespace

void add_norm(DeviceTable& table) {
  table.rms_norm = rms_norm;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
