// The products of linear.h on a device: bf16 operands, sums in f32. On a GPU cuBLASLt's (cublas_lt.cc), on
// the emulated device the CPU's own kernels.
//
// 2 M N K operations each; with all three sizes of 2,048 and more the tensor cores are the limit, not memory.
#include "kernels/device_table_internal.h"

#ifdef __CUDACC__
#include "kernels/cublas_lt_internal.h"
#else
#include "base/thread_pool.h"
#include "kernels/dtype.h"
#include "kernels/linear.h"
#endif

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

void check_widths(int64_t N, int64_t K) {
  DEVICE_CHECK(N % 8 == 0 && K % 8 == 0);
}

#ifdef __CUDACC__

void linear(DeviceStream stream, bf16* y_MN, const bf16* x_MK, const bf16* w_NK, const bf16* bias_N,
            int64_t M, int64_t N, int64_t K) {
  check_widths(N, K);
  cublas_multiply(stream, {MatrixProduct::kForward, y_MN, w_NK, x_MK, bias_N, M, N, K, false});
}

void linear_dx(DeviceStream stream, bf16* dx_MK, const bf16* dy_MN, const bf16* w_NK, int64_t M, int64_t N,
               int64_t K, bool adds) {
  check_widths(N, K);
  cublas_multiply(stream, {MatrixProduct::kInputGradient, dx_MK, w_NK, dy_MN, nullptr, M, N, K, adds});
}

void linear_dw(DeviceStream stream, float* dw_NK, const bf16* dy_MN, const bf16* x_MK, int64_t M, int64_t N,
               int64_t K) {
  check_widths(N, K);
  cublas_multiply(stream, {MatrixProduct::kWeightGradient, dw_NK, x_MK, dy_MN, nullptr, M, N, K, true});
}

#else

std::vector<float> widen(const bf16* x, int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  to_f32(values.data(), x, DType::kBF16, n);
  return values;
}

void linear(DeviceStream stream, bf16* y_MN, const bf16* x_MK, const bf16* w_NK, const bf16* bias_N,
            int64_t M, int64_t N, int64_t K) {
  check_widths(N, K);
  run_on_host(stream, [=] {
    ThreadPool& pool = compute_pool();
    std::vector<float> y(static_cast<size_t>(M * N));
    kernels::linear(y.data(), widen(x_MK, M * K).data(), PackedWeight::pack(DType::kBF16, w_NK, N, K, pool),
                    M, pool);
    for (int64_t i = 0; bias_N != nullptr && i < M * N; ++i)
      y[static_cast<size_t>(i)] += to_float(bias_N[i % N]);
    from_f32(y_MN, y.data(), DType::kBF16, M * N);
  });
}

void linear_dx(DeviceStream stream, bf16* dx_MK, const bf16* dy_MN, const bf16* w_NK, int64_t M, int64_t N,
               int64_t K, bool adds) {
  check_widths(N, K);
  run_on_host(stream, [=] {
    ThreadPool& pool = compute_pool();
    std::vector<float> dx = adds ? widen(dx_MK, M * K) : std::vector<float>(static_cast<size_t>(M * K));
    linear_accumulate(dx.data(), widen(dy_MN, M * N).data(),
                      PackedWeight::pack_transposed(DType::kBF16, w_NK, N, K, pool), M, pool);
    from_f32(dx_MK, dx.data(), DType::kBF16, M * K);
  });
}

void linear_dw(DeviceStream stream, float* dw_NK, const bf16* dy_MN, const bf16* x_MK, int64_t M, int64_t N,
               int64_t K) {
  check_widths(N, K);
  run_on_host(stream, [=] {
    linear_backward_weight(dw_NK, widen(dy_MN, M * N).data(), widen(x_MK, M * K).data(), DType::kBF16, M, N,
                           K, compute_pool());
  });
}

#endif

}  // namespace

void add_linear(DeviceTable& table) {
  table.linear = linear;
  table.linear_dx = linear_dx;
  table.linear_dw = linear_dw;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
