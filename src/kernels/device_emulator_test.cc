// The emulated device runs CUDA's threads, and finds what a GPU would get wrong in silence.
#include "kernels/device_code.h"
#include "kernels/device_test_internal.h"

namespace flywheel::kernels::emulated {
namespace {

__global__ void number_threads(int32_t* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned all = blockDim.x * blockDim.y * blockDim.z;
  out[block * all + thread] = static_cast<int32_t>(block * 1000 + thread);
}

TEST(DeviceEmulator, EveryThreadOfEveryBlockRunsOnce) {
  const auto device = Device::emulated();
  const dim3 grid(3, 2, 2), block(8, 4, 2);
  DeviceBuffer out = device->allocate(12 * 64 * 4).value();
  LAUNCH(number_threads, grid, block, 0, device->stream())(out.as<int32_t>());
  const auto got = from_device<int32_t>(out);
  for (int i = 0; i < 12 * 64; ++i) EXPECT_EQ(got[static_cast<size_t>(i)], i / 64 * 1000 + i % 64);
}

// Several rounds through shared memory, static and the launch's, by threads of many warps.
__global__ void rotate_through_shared(float* x) {
  SHARED_ARRAY(float, first, 96);
  auto* second = dynamic_shared<float>();
  const unsigned i = threadIdx.x;
  float* mine = x + blockIdx.x * 96;
  for (int round = 0; round < 5; ++round) {
    first[i] = mine[i];
    __syncthreads();
    second[i] = first[(i + 1) % 96];
    __syncthreads();
    mine[i] = second[(i + 1) % 96];
  }
}

TEST(DeviceEmulator, BarriersOrderSharedMemory) {
  const auto device = Device::emulated();
  std::vector<float> x(4 * 96);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  DeviceBuffer on_x = on_device(*device, x);
  LAUNCH(rotate_through_shared, 4, 96, 96 * 4, device->stream())(on_x.as<float>());
  const auto got = from_device<float>(on_x);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(got[i], static_cast<float>(i / 96 * 96 + (i + 10) % 96));
}

__global__ void read_what_nobody_wrote(float* out) {
  SHARED_ARRAY(float, values, 32);
  out[threadIdx.x] = values[threadIdx.x];
  out[32 + threadIdx.x] = dynamic_shared<float>()[threadIdx.x];
}

TEST(DeviceEmulator, MemoryBeginsAsNaN) {
  const auto device = Device::emulated();
  DeviceBuffer out = device->allocate(65 * 4).value();
  LAUNCH(read_what_nobody_wrote, 1, 32, 128, device->stream())(out.as<float>());
  for (const float x : from_device<float>(out)) EXPECT_TRUE(std::isnan(x));
}

__global__ void use_the_warp(float* out, double* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, i = static_cast<int>(threadIdx.x);
  const auto x = static_cast<float>(i);
  out[i] = __shfl_sync(kAllLanes, x, 3);
  out[64 + i] = __shfl_xor_sync(kAllLanes, x, 5);
  out[128 + i] = __shfl_down_sync(kAllLanes, x, 30);
  out[192 + i] = warp_sum(x);
  out[256 + i] = warp_sum<8>(x);
  out[320 + i] = warp_max(lane == 7 ? 1e9f : x);
  out[384 + i] = block_sum<64>(x);
  out[448 + i] = block_max<64>(-x);
  sums[i] = block_sum<64>(static_cast<double>(i) + 0.25);
}

TEST(DeviceEmulator, ShufflesAndSums) {
  const auto device = Device::emulated();
  DeviceBuffer out = device->allocate(512 * 4).value(), sums = device->allocate(64 * 8).value();
  LAUNCH(use_the_warp, 1, 64, 0, device->stream())(out.as<float>(), sums.as<double>());
  const auto got = from_device<float>(out);
  const auto doubles = from_device<double>(sums);
  for (size_t i = 0; i < 64; ++i) {
    const size_t first = i / 32 * 32, lane = i % 32;
    EXPECT_EQ(got[i], static_cast<float>(first + 3));
    EXPECT_EQ(got[64 + i], static_cast<float>(first + (lane ^ 5)));
    EXPECT_EQ(got[128 + i], static_cast<float>(lane < 2 ? i + 30 : i));
    EXPECT_EQ(got[192 + i], static_cast<float>(first * 32 + 31 * 16));
    EXPECT_EQ(got[256 + i], static_cast<float>(i / 8 * 64 + 28));
    EXPECT_EQ(got[320 + i], 1e9f);
    EXPECT_EQ(got[384 + i], 63.0f * 32);
    EXPECT_EQ(got[448 + i], 0);
    EXPECT_EQ(doubles[i], 63.0 * 32 + 16);
  }
}

__global__ void half_a_barrier(int) {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void two_barriers(int) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void half_a_shuffle(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
}
__global__ void two_shuffles(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
  }
}
__global__ void beyond_the_end(float* x) {
  x[threadIdx.x] = 1;
}
__global__ void not_aligned(const float* x) {
  load4(x + 1);
}
__global__ void much_static_shared(int) {
  SHARED_ARRAY(float, values, 13 * 1024);
  values[threadIdx.x] = 0;
}

TEST(DeviceEmulatorDeathTest, WhatAGpuWouldGetWrongEndsTheProgram) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto run = [](int threads, int64_t shared, auto kernel, auto argument, const char* name) {
    const auto device = Device::emulated();
    emulator::make_launch(kernel, name, 1, static_cast<unsigned>(threads), shared,
                          device->stream())(argument);
    device->synchronize().value();
  };
#define RUN(threads, shared, kernel, argument) run(threads, shared, kernel, argument, #kernel)
  float room[64] = {};
  EXPECT_DEATH(RUN(64, 0, half_a_barrier, 0),
               "half_a_barrier.*do not come.*device_emulator_test.cc.*from thread 40");
  EXPECT_DEATH(RUN(64, 0, two_barriers, 0), "two_barriers.*barriers of different lines");
  EXPECT_DEATH(RUN(32, 0, half_a_shuffle, room), "half_a_shuffle.*do not come");
  EXPECT_DEATH(RUN(32, 0, two_shuffles, room), "two_shuffles.*different lines");
  EXPECT_DEATH(RUN(32, 0, not_aligned, static_cast<const float*>(room)), "not_aligned.*no multiple of 16");
  EXPECT_DEATH(RUN(32, 0, much_static_shared, 0), "much_static_shared.*static shared memory");
  EXPECT_DEATH(RUN(32, 228 * 1024, half_a_barrier, 0), "half_a_barrier.*shared memory");
  EXPECT_DEATH(RUN(33, 0, half_a_barrier, 0), "half_a_barrier: blocks of 33 threads");
  EXPECT_DEATH(emulator::lane(), "outside of a kernel");
  EXPECT_DEATH(
      {
        const auto device = Device::emulated();
        DeviceBuffer x = device->allocate(31 * 4).value();
        LAUNCH(beyond_the_end, 1, 32, 0, device->stream())(x.as<float>());
      },
      "past the end of a buffer of 124 bytes");
#undef RUN
}

}  // namespace
}  // namespace flywheel::kernels::emulated
