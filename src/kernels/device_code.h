// What a .cu file includes: one dialect of CUDA that nvcc compiles for GPUs and the host's compiler for the
// emulated device (device_emulator.h).
//
// Everything of a .cu stands in namespace flywheel::kernels::FLYWHEEL_DEVICE, kernels and launchers in an
// unnamed one within. Under both compilers: __global__, __device__, threadIdx and its kin, dim3,
// __syncthreads(), __syncwarp(),
// __shfl_sync(), __shfl_xor_sync(), __shfl_down_sync() (full mask), and
//   SHARED_ARRAY(float, sums, 32);          a static array of the block; `sums` is a float*. Not in a loop
//   float* tile = dynamic_shared<float>();  the bytes that the launch asked for, 128-byte aligned
//   LAUNCH(kernel, grid, block, shared_bytes, stream)(arguments...);   block a multiple of 32; (kernel<4, 8>)
//   in
//                                           parentheses. Arguments are copied, and the kernel runs later
//   UNROLL for (...)                        #pragma unroll
//   DEVICE_CHECK(condition)                 in launchers, on the host
// What a launcher does without a kernel (a library's call) is run_on_host() on the emulated device: work
// there, too, is queued, and runs in order when the device is synchronized.
//
// nvcc is told not to fuse multiplies and adds (-fmad=false): kernels that want it say fmaf(), and the two
// devices differ only in exp, log and the like.
#pragma once

#include "kernels/device_table.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define FLYWHEEL_DEVICE cuda
#define UNROLL _Pragma("unroll")
#define SHARED_ARRAY(type, name, n) __shared__ __align__(16) type name[n]
#else
#include "kernels/device_emulator.h"

#define FLYWHEEL_DEVICE emulated
#define UNROLL
#endif

#include <cmath>
#include <cstring>

#define DEVICE_CHECK(condition)                                                            \
  do {                                                                                     \
    if (!(condition)) ::flywheel::kernels::launch_refused(__FILE__, __LINE__, #condition); \
  } while (false)

namespace flywheel::kernels {

// A CHECK that failed in a launcher: ends the program (device.cc; nvcc does not see base/check.h).
[[noreturn]] void launch_refused(const char* file, int line, const char* condition);

namespace FLYWHEEL_DEVICE {

#ifdef __CUDACC__
#define LAUNCH(kernel, grid, block, shared_bytes, stream) \
  ::flywheel::kernels::cuda::make_launch(kernel, #kernel, grid, block, shared_bytes, stream)

template <typename... P>
struct Launch {
  void (*kernel)(P...);
  const char* name;
  dim3 grid, block;
  int64_t shared_bytes;
  DeviceStream stream;

  void operator()(P... arguments) const {
    cudaError_t error = cudaSuccess;
    if (shared_bytes > 48 * 1024) {
      error =
          cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    }
    if (error == cudaSuccess) {
      kernel<<<grid, block, static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream.handle)>>>(
          arguments...);
      error = cudaGetLastError();
    }
    if (error != cudaSuccess && stream.failure != nullptr && stream.failure->kernel == nullptr) {
      *stream.failure = {name, static_cast<int>(error)};
    }
  }
};

template <typename... P>
Launch<P...> make_launch(void (*kernel)(P...), const char* name, dim3 grid, dim3 block, int64_t shared_bytes,
                         DeviceStream stream) {
  return {kernel, name, grid, block, shared_bytes, stream};
}

template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char flywheel_dynamic_shared[];
  return reinterpret_cast<T*>(flywheel_dynamic_shared);
}
#endif

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float to_float(bf16 x) {
#ifdef __CUDACC__
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
#else
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// To nearest even; a NaN stays one.
__device__ inline bf16 to_bf16(float x) {
#ifdef __CUDACC__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};  // the GPU's NaN
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
#endif
}

// What a thread reads and writes at once: 16 bytes.
struct alignas(16) Vec8 {
  bf16 v[8];
};
struct alignas(16) Vec4f {
  float v[4];
};

template <typename Vector>
__device__ inline Vector load_vector(const void* p) {
#ifdef __CUDACC__
  const uint4 words = *static_cast<const uint4*>(p);
  return *reinterpret_cast<const Vector*>(&words);
#else
  emulator::check_aligned(p);
  Vector x;
  std::memcpy(&x, p, sizeof x);
  return x;
#endif
}
template <typename Vector>
__device__ inline void store_vector(void* p, const Vector& x) {
#ifdef __CUDACC__
  *static_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&x);
#else
  emulator::check_aligned(p);
  std::memcpy(p, &x, sizeof x);
#endif
}
__device__ inline Vec8 load8(const bf16* p) {
  return load_vector<Vec8>(p);
}
__device__ inline void store8(bf16* p, const Vec8& x) {
  store_vector(p, x);
}
__device__ inline Vec4f load4(const float* p) {
  return load_vector<Vec4f>(p);
}
__device__ inline void store4(float* p, const Vec4f& x) {
  store_vector(p, x);
}

// exp(x) and a / b within a few units of the last place, of f32's 24 bits.
__device__ inline float fast_exp(float x) {
#ifdef __CUDACC__
  return __expf(x);
#else
  return expf(x);
#endif
}
__device__ inline float fast_divide(float a, float b) {
#ifdef __CUDACC__
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

// Over aligned groups of kLanes of a warp: every lane gets the same bits.
template <int kLanes = kWarp, typename T>
__device__ inline T warp_sum(T x) {
  UNROLL for (int mask = kLanes / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}
template <int kLanes = kWarp>
__device__ inline float warp_max(float x) {
  UNROLL for (int mask = kLanes / 2; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, mask));
  return x;
}

// Over a block of kThreads in one dimension: every thread gets the same bits. All threads call it.
// `over_warp` is the reduction over a warp, `none` what changes nothing in it.
template <int kThreads, typename T, typename OverWarp>
__device__ inline T block_reduce(T x, T none, const OverWarp& over_warp) {
  constexpr int kWarps = kThreads / kWarp;
  SHARED_ARRAY(T, of_warps, kWarp);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  x = over_warp(x);
  if (lane == 0) of_warps[warp] = x;
  __syncthreads();
  x = over_warp(lane < kWarps ? of_warps[lane] : none);
  __syncthreads();  // `of_warps` is free again
  return x;
}
template <int kThreads, typename T>
__device__ inline T block_sum(T x) {
  return block_reduce<kThreads>(x, T(0), [](T of_lane) { return warp_sum(of_lane); });
}
template <int kThreads>
__device__ inline float block_max(float x) {
  return block_reduce<kThreads>(x, -INFINITY, [](float of_lane) { return warp_max(of_lane); });
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

const DeviceTable& device_table();

}  // namespace FLYWHEEL_DEVICE
}  // namespace flywheel::kernels
