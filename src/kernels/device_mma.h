// What a warp does together on a GPU since sm_80: products of small matrices in the tensor cores, the loads
// of their operands from shared memory, and copies from global into shared memory that go on beside the
// maths.
//
// Under nvcc these are PTX instructions. On the emulated device they are exchanges between the lanes of a
// warp with the same layout, so that a wrong index gives a wrong number there too; and copies arrive at once
// in blocks with an even index but only when they are waited for in odd ones, so that neither a missing wait
// nor a buffer that is filled again too early goes unseen.
//
// All 32 lanes of a warp call each function together, but for cp_async, which is a thread's own.
#pragma once

#include "kernels/device_code.h"

#ifndef __CUDACC__
#include "base/check.h"
#endif

namespace flywheel::kernels::FLYWHEEL_DEVICE {

// d += a * b: 16 x 8 of d (f32), 16 x 16 of a and 16 x 8 of b (bf16, two to a register, the lower index in
// the lower half). With g = lane / 4 and t = lane % 4 a lane holds
//   d: rows g, g + 8 (elements 0-1, 2-3), columns 2t, 2t + 1
//   a: registers 0-3: rows g, g + 8, g, g + 8, columns 2t, 2t + 1, from the third register on 8 further
//   b: registers 0-1: rows 2t, 2t + 1 and 8 further, column g
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// Four matrices of 8 x 8 bf16. Lane i gives the address (16 bytes aligned, in shared memory) of row i % 8 of
// matrix i / 8, and gets in r[j], of matrix j, columns 2t, 2t + 1 of row g; transposed: column g of rows 2t,
// 2t + 1.
// The address is row + at: with a constant `at` it takes no register of its own.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const bf16* row, int at);
__device__ inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const bf16* row, int at);

// A copy of 16 (4) bytes from global to shared memory, both aligned to that; zeros if not `valid`, and then
// `from` is not read. It belongs to the group that the next cp_async_commit() closes; cp_async_wait<N>()
// returns when all of this thread's groups but the newest N have arrived.
__device__ inline void cp_async_16(void* to, const void* from, bool valid);
__device__ inline void cp_async_4(void* to, const void* from, bool valid);
__device__ inline void cp_async_commit();
template <int kNewest>
__device__ inline void cp_async_wait();

// 2^x; the hardware's own, within two units in the last place; 0 for -infinity.
__device__ inline float fast_exp2(float x);

// Two values as a register of an operand; the first in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high);

#ifdef __CUDACC__
#define NO_UNROLL _Pragma("unroll 1")  // before a loop whose copies would take the registers of sums

__device__ inline unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const bf16* row, int at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row) + static_cast<unsigned>(2 * at))
               : "memory");
}

__device__ inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const bf16* row, int at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row) + static_cast<unsigned>(2 * at))
               : "memory");
}

__device__ inline void cp_async_16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ inline void cp_async_4(void* to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 4 : 0)
               : "memory");
}

__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kNewest>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

#else
#define NO_UNROLL

namespace mma_emulation {

// What lane `lane` gave: its address of a row.
inline const bf16* row_of(const std::byte* all, int lane) {
  const bf16* row;
  std::memcpy(static_cast<void*>(&row), all + lane * emulator::kExchangeBytes, sizeof(const bf16*));
  return row;
}

// Every lane gives the address of its row, and gets all of them.
inline const std::byte* exchange_rows(const bf16* row,
                                      std::source_location where = std::source_location::current()) {
  emulator::check_aligned(row);
  return emulator::warp_exchange(static_cast<const void*>(&row), sizeof(const bf16*), where);
}

inline uint32_t pair(bf16 low, bf16 high) {
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}

// Value i of lane `lane`'s registers, which begin `at` bytes into what it gave.
inline float value_of(const std::byte* all, int lane, int at, int i) {
  bf16 value;
  std::memcpy(&value, all + lane * emulator::kExchangeBytes + at + 2 * i, sizeof value);
  return to_float(value);
}

struct Copy {
  void* to;
  const void* from;  // null: zeros
  int64_t bytes;
  void run() const {
    if (from == nullptr) {
      std::memset(to, 0, static_cast<size_t>(bytes));
    } else {
      std::memcpy(to, from, static_cast<size_t>(bytes));
    }
  }
};

// The copies of one thread that have not arrived, in the groups that it closed and the one that is open.
struct Copies {
  emulator::Dim3 block;
  std::vector<std::vector<Copy> > closed;
  std::vector<Copy> open;
};

inline Copies& copies() {
  thread_local std::vector<Copies> of_threads;
  const emulator::Dim3 thread = threadIdx, size = blockDim, block = blockIdx;
  const auto number = static_cast<size_t>((thread.z * size.y + thread.y) * size.x + thread.x);
  if (of_threads.size() <= number) of_threads.resize(number + 1);
  Copies& mine = of_threads[number];
  if (mine.block.x != block.x || mine.block.y != block.y || mine.block.z != block.z) mine = {block, {}, {}};
  return mine;
}

inline void copy(void* to, const void* from, bool valid, int64_t bytes) {
  CHECK(reinterpret_cast<uintptr_t>(to) % static_cast<uintptr_t>(bytes) == 0 &&
            reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(bytes) == 0,
        "a copy of {} bytes that is not aligned to them", bytes);
  const Copy one{to, valid ? from : nullptr, bytes};
  const emulator::Dim3 block = blockIdx;
  if ((block.x + block.y + block.z) % 2 == 0) {
    one.run();
  } else {
    copies().open.push_back(one);
  }
}

}  // namespace mma_emulation

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const std::byte* all = emulator::warp_exchange(mine, sizeof mine);
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      // Row `row` of a is with lanes 4 * (row % 8) and the three after it; column `column` of b likewise.
      const int lane = k % 8 / 2, half = k / 8;
      sum += mma_emulation::value_of(all, row % 8 * 4 + lane, 0, (row / 8 + 2 * half) * 2 + k % 2) *
             mma_emulation::value_of(all, column * 4 + lane, 16, half * 2 + k % 2);
    }
    d[i] += sum;
  }
}

inline void ldmatrix_x4(uint32_t (&r)[4], const bf16* row, int at) {
  const std::byte* all = mma_emulation::exchange_rows(row + at);
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int j = 0; j < 4; ++j) {
    const bf16* from = mma_emulation::row_of(all, j * 8 + g) + 2 * t;
    r[j] = mma_emulation::pair(from[0], from[1]);
  }
}

inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const bf16* row, int at) {
  const std::byte* all = mma_emulation::exchange_rows(row + at);
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int j = 0; j < 4; ++j) {
    r[j] = mma_emulation::pair(mma_emulation::row_of(all, j * 8 + 2 * t)[g],
                               mma_emulation::row_of(all, j * 8 + 2 * t + 1)[g]);
  }
}

inline void cp_async_16(void* to, const void* from, bool valid) {
  mma_emulation::copy(to, from, valid, 16);
}

inline void cp_async_4(void* to, const void* from, bool valid) {
  mma_emulation::copy(to, from, valid, 4);
}

inline void cp_async_commit() {
  auto& mine = mma_emulation::copies();
  mine.closed.push_back(std::exchange(mine.open, {}));
}

template <int kNewest>
inline void cp_async_wait() {
  auto& closed = mma_emulation::copies().closed;
  while (closed.size() > kNewest) {
    for (const mma_emulation::Copy& copy : closed.front()) copy.run();
    closed.erase(closed.begin());
  }
}

inline float fast_exp2(float x) {
  return std::exp2(x);
}

inline uint32_t pack_bf16(float low, float high) {
  return mma_emulation::pair(to_bf16(low), to_bf16(high));
}

#endif

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
