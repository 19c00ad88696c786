// Sums, conversions and fills of flat buffers on a device, and biases. Each value is read and written once:
// memory is the limit. A thread has 8 values, or those that are left at the end.
#include "kernels/device_rows_internal.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

constexpr int kThreads = 256;

// Eight values of either kind, as floats.
struct Floats {
  float v[8];
};
__device__ inline Floats load_floats(const bf16* p) {
  const Vec8 x = load8(p);
  Floats out;
  UNROLL for (int j = 0; j < 8; ++j) out.v[j] = to_float(x.v[j]);
  return out;
}
__device__ inline Floats load_floats(const float* p) {
  const Vec4f low = load4(p), high = load4(p + 4);
  Floats out;
  UNROLL for (int j = 0; j < 8; ++j) out.v[j] = j < 4 ? low.v[j] : high.v[j - 4];
  return out;
}
__device__ inline void store_floats(bf16* p, const Floats& x) {
  Vec8 out;
  UNROLL for (int j = 0; j < 8; ++j) out.v[j] = to_bf16(x.v[j]);
  store8(p, out);
}
__device__ inline void store_floats(float* p, const Floats& x) {
  Vec4f low, high;
  UNROLL for (int j = 0; j < 4; ++j) low.v[j] = x.v[j], high.v[j] = x.v[4 + j];
  store4(p, low), store4(p + 4, high);
}
__device__ inline float widened(bf16 x) {
  return to_float(x);
}
__device__ inline float widened(float x) {
  return x;
}
__device__ inline void store_one(bf16* p, float x) {
  *p = to_bf16(x);
}
__device__ inline void store_one(float* p, float x) {
  *p = x;
}

// y = op(a, b), value by value.
template <typename Op, typename Y, typename X>
__global__ void __launch_bounds__(kThreads) map_values(Y* y, const X* a, const X* b, Op op, int64_t n) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (i + 8 <= n) {
    Floats out = a == nullptr ? Floats{} : load_floats(a + i);
    const Floats other = b == nullptr ? Floats{} : load_floats(b + i);
    UNROLL for (int j = 0; j < 8; ++j) out.v[j] = op(out.v[j], other.v[j]);
    store_floats(y + i, out);
  } else {
    for (int64_t k = i; k < n; ++k) {
      store_one(y + k, op(a == nullptr ? 0.0f : widened(a[k]), b == nullptr ? 0.0f : widened(b[k])));
    }
  }
}

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Same {
  __device__ float operator()(float a, float) const { return a; }
};
struct Constant {
  float value;
  __device__ float operator()(float, float) const { return value; }
};
struct ScaledSum {
  float factor;
  __device__ float operator()(float a, float b) const { return fmaf(factor, b, a); }
};

template <typename Op, typename Y, typename X>
void start_map(DeviceStream stream, Y* y, const X* a, const X* b, Op op, int64_t n) {
  if (n == 0) return;
  LAUNCH((map_values<Op, Y, X>), static_cast<unsigned>(ceil_div(n, kThreads * 8)), kThreads, 0, stream)
  (y, a, b, op, n);
}

void add(DeviceStream stream, bf16* y, const bf16* a, const bf16* b, int64_t n) {
  start_map(stream, y, a, b, Sum(), n);
}
void narrow(DeviceStream stream, bf16* y, const float* x, int64_t n) {
  start_map<Same, bf16, float>(stream, y, x, nullptr, Same(), n);
}
void widen(DeviceStream stream, float* y, const bf16* x, int64_t n) {
  start_map<Same, float, bf16>(stream, y, x, nullptr, Same(), n);
}
void fill(DeviceStream stream, float* y, float value, int64_t n) {
  start_map<Constant, float, float>(stream, y, nullptr, nullptr, Constant{value}, n);
}
void add_scaled(DeviceStream stream, float* y, const float* a, const float* b, float factor, int64_t n) {
  start_map(stream, y, a, b, ScaledSum{factor}, n);
}

__global__ void __launch_bounds__(1024) sum_values(double* total, const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += 1024) sum += static_cast<double>(x[i]);
  sum = block_sum<1024>(sum);
  if (threadIdx.x == 0) *total += sum;
}

void sum(DeviceStream stream, double* total, const float* x, int64_t n) {
  LAUNCH(sum_values, 1u, 1024, 0, stream)(total, x, n);
}

__global__ void __launch_bounds__(kThreads)
    add_bias_vectors(bf16* y_TN, const float* bias_N, int64_t T, int64_t N) {
  const int64_t each = N / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= T * each) return;
  Floats y = load_floats(y_TN + i * 8);
  const Floats bias = load_floats(bias_N + i % each * 8);
  UNROLL for (int j = 0; j < 8; ++j) y.v[j] += bias.v[j];
  store_floats(y_TN + i * 8, y);
}

void add_bias(DeviceStream stream, bf16* y_TN, const float* bias_N, int64_t T, int64_t N) {
  DEVICE_CHECK(N > 0 && N % 8 == 0);
  if (T == 0) return;
  LAUNCH(add_bias_vectors, static_cast<unsigned>(ceil_div(T * N / 8, kThreads)), kThreads, 0, stream)
  (y_TN, bias_N, T, N);
}

// A block: 256 columns, 8 to a lane, and every gridDim.y-th group of 8 rows, one to a warp.
__global__ void __launch_bounds__(kThreads)
    column_sums(float* parts, const bf16* x, int64_t stride, int64_t T, int64_t N) {
  constexpr int kWarps = kThreads / kWarp;
  SHARED_ARRAY(float, of_warps, kThreads * 8);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarp * 8, column = first + lane * 8;
  Floats sums = {};
  if (column < N) {
    for (int64_t t = static_cast<int64_t>(blockIdx.y) * kWarps + warp; t < T; t += gridDim.y * kWarps) {
      const Floats row = load_floats(x + t * stride + column);
      UNROLL for (int j = 0; j < 8; ++j) sums.v[j] += row.v[j];
    }
  }
  UNROLL for (int j = 0; j < 8; ++j) of_warps[warp * kThreads + lane * 8 + j] = sums.v[j];
  __syncthreads();
  if (first + threadIdx.x >= N) return;
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warps[w * kThreads + threadIdx.x];
  parts[blockIdx.y * N + first + threadIdx.x] = sum;
}

void bias_backward(DeviceStream stream, float* dbias_N, float* workspace, const bf16* dy_TN, int64_t stride,
                   int64_t T, int64_t N) {
  DEVICE_CHECK(N > 0 && N % 8 == 0 && stride % 8 == 0);
  if (T == 0) return;
  const int64_t columns = ceil_div(N, kWarp * 8), groups = ceil_div(T, kThreads / kWarp);
  const int64_t most = ceil_div(kRowParts, columns), parts = groups < most ? groups : most;
  LAUNCH(column_sums, dim3(static_cast<unsigned>(columns), static_cast<unsigned>(parts)), kThreads, 0, stream)
  (workspace, dy_TN, stride, T, N);
  add_row_sums(stream, dbias_N, workspace, parts, N);
}

}  // namespace

void add_elementwise(DeviceTable& table) {
  table.add_bias = add_bias;
  table.bias_backward = bias_backward;
  table.add = add;
  table.narrow = narrow;
  table.widen = widen;
  table.fill = fill;
  table.add_scaled = add_scaled;
  table.sum = sum;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
