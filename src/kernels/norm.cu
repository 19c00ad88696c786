// RMSNorm on the GPU: one block of threads a row; sums in a tree over the block, so a row's bits do not
// depend on T.
#include <cuda_runtime.h>

#include <cstdint>

namespace flywheel::kernels {
namespace {

constexpr int kThreads = 256;

__global__ void rms_norm_rows(float* y_TD, const float* x_TD, const float* weight_D, int64_t D,
                              float epsilon) {
  __shared__ float partial[kThreads];
  const float* x = x_TD + blockIdx.x * D;
  float* y = y_TD + blockIdx.x * D;
  float squares = 0;
  for (int64_t d = threadIdx.x; d < D; d += kThreads) squares = fmaf(x[d], x[d], squares);
  partial[threadIdx.x] = squares;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  const float inverse = 1.0f / sqrtf(partial[0] / static_cast<float>(D) + epsilon);
  for (int64_t d = threadIdx.x; d < D; d += kThreads) y[d] = x[d] * inverse * weight_D[d];
}

}  // namespace

void rms_norm_device(float* y_TD, const float* x_TD, const float* weight_D, int64_t T, int64_t D,
                     float epsilon) {
  if (T > 0) rms_norm_rows<<<static_cast<unsigned>(T), kThreads>>>(y_TD, x_TD, weight_D, D, epsilon);
}

}  // namespace flywheel::kernels
