// The emulated device: CUDA's threads on the CPU, so that tests run what a GPU would.
//
// Blocks run on compute_pool(), in no order: they must not depend on each other. The threads of a block are
// fibers that change at barriers, shuffles and other exchanges of a warp; in odd blocks the last runs first,
// so that a missing barrier shows. A barrier or exchange that some threads do not reach, or reach at another
// line, is a CHECK failure that names the kernel, the thread and the lines. Shared memory begins as NaN.
//
// Kernels are queued on their stream (EmulatedStream) and run when the device is synchronized, as on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/device_table.h"

// NOLINTBEGIN(bugprone-reserved-identifier,bugprone-macro-parentheses): CUDA's names; declarations take none
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED_ARRAY(type, name, n)                                                   \
  static char name##_of_block = 0;                                                    \
  type* const name = static_cast<type*>(::flywheel::kernels::emulator::static_shared( \
      &name##_of_block, static_cast<int64_t>(sizeof(type)) * (n)))
// NOLINTEND(bugprone-reserved-identifier,bugprone-macro-parentheses)
#define LAUNCH(kernel, grid, block, shared_bytes, stream) \
  ::flywheel::kernels::emulator::make_launch(kernel, #kernel, grid, block, shared_bytes, stream)

#define threadIdx (::flywheel::kernels::emulator::thread_index())
#define blockIdx (::flywheel::kernels::emulator::block_index())
#define blockDim (::flywheel::kernels::emulator::block_size())
#define gridDim (::flywheel::kernels::emulator::grid_size())

namespace flywheel::kernels::emulator {

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1)
      : x(x_), y(y_), z(z_) {}  // NOLINT: as CUDA's
  constexpr int64_t count() const { return static_cast<int64_t>(x) * y * z; }
};

// Of the thread that runs; CHECKs that one does.
const Dim3& thread_index();
const Dim3& block_index();
const Dim3& block_size();
const Dim3& grid_size();

void sync_threads(std::source_location where = std::source_location::current());

// Every lane of the warp gives `bytes` (64 at most) and gets the address of lane i's at i * kExchangeBytes,
// valid until its next exchange. All lanes call it from the same line with the same `bytes`.
inline constexpr int kExchangeBytes = 64;
const std::byte* warp_exchange(const void* mine, int bytes,
                               std::source_location where = std::source_location::current());
int lane();

void* static_shared(const void* array, int64_t bytes);
void* dynamic_shared_bytes();
void check_aligned(const void* p);

// What a stream has yet to do. One thread at a time.
struct EmulatedStream {
  std::vector<std::function<void()>> queue;
  std::vector<std::function<void()>>* recording = nullptr;  // capture: here in place of the queue
};
void enqueue(DeviceStream stream, std::function<void()> work);

// body() once for each thread of the grid, here and now.
void run_grid(const char* kernel, Dim3 grid, Dim3 block, int64_t shared_bytes,
              const std::function<void()>& body);

template <typename... P>
struct Launch {
  void (*kernel)(P...);
  const char* name;
  Dim3 grid, block;
  int64_t shared_bytes;
  DeviceStream stream;

  void operator()(P... arguments) const {
    enqueue(stream, [launch = *this, values = std::tuple<P...>(arguments...)] {
      run_grid(launch.name, launch.grid, launch.block, launch.shared_bytes,
               [&] { std::apply(launch.kernel, values); });
    });
  }
};

template <typename... P>
Launch<P...> make_launch(void (*kernel)(P...), const char* name, Dim3 grid, Dim3 block, int64_t shared_bytes,
                         DeviceStream stream) {
  return {kernel, name, grid, block, shared_bytes, stream};
}

}  // namespace flywheel::kernels::emulator

namespace flywheel::kernels::emulated {

namespace emulator = ::flywheel::kernels::emulator;
using dim3 = emulator::Dim3;

// In place of a library's call: runs in its turn on the stream.
inline void run_on_host(DeviceStream stream, std::function<void()> work) {
  emulator::enqueue(stream, std::move(work));
}

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared_bytes());
}

inline void __syncthreads(  // NOLINT: CUDA's name
    std::source_location where = std::source_location::current()) {
  emulator::sync_threads(where);
}
inline void __syncwarp(unsigned = 0xffffffffu,  // NOLINT: CUDA's name
                       std::source_location where = std::source_location::current()) {
  const char nothing = 0;
  emulator::warp_exchange(&nothing, 0, where);
}

// Lane `from`'s value. What `from` names beyond the warp is the lane's own, as on the GPU.
template <typename T>
T shuffle(T x, int from, std::source_location where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  const std::byte* all = emulator::warp_exchange(&x, sizeof x, where);
  T taken;
  std::memcpy(&taken, all + (from >= 0 && from < 32 ? from : emulator::lane()) * emulator::kExchangeBytes,
              sizeof taken);
  return taken;
}
template <typename T>
T __shfl_sync(unsigned, T x, int from,  // NOLINT: CUDA's name
              std::source_location where = std::source_location::current()) {
  return shuffle(x, from & 31, where);
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask,  // NOLINT: CUDA's name
                  std::source_location where = std::source_location::current()) {
  return shuffle(x, emulator::lane() ^ mask, where);
}
template <typename T>
T __shfl_down_sync(unsigned, T x, int by,  // NOLINT: CUDA's name
                   std::source_location where = std::source_location::current()) {
  return shuffle(x, emulator::lane() + by, where);
}

}  // namespace flywheel::kernels::emulated
