// Working memory of a kernel call: one buffer per thread and use, which grows and is kept.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "base/check.h"

namespace flywheel::kernels {

// 64-byte aligned memory, from huge pages where it is large: a walk over it is then bound by the memory
// alone, not by page tables. Free with std::free.
void* allocate_aligned(int64_t bytes);

enum class Scratch { kLinearInput, kWeightA, kWeightB, kLogits, kAttention, kPartialSums, kCount };

// At least `bytes` bytes, 64-byte aligned; what was in it before is lost. Valid until the next call with this
// `use` on this thread.
void* scratch(Scratch use, int64_t bytes);
template <typename T>
T* scratch(Scratch use, int64_t count) {
  return static_cast<T*>(scratch(use, count * static_cast<int64_t>(sizeof(T))));
}

}  // namespace flywheel::kernels
