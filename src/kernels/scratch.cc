#include <sys/mman.h>

#include <array>
#include <memory>

#include "kernels/scratch_internal.h"

namespace flywheel::kernels {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
struct Buffer {
  std::unique_ptr<void, Free> memory;
  int64_t bytes = 0;
};

}  // namespace

void* allocate_aligned(int64_t bytes) {
  constexpr int64_t kHugePage = 2 << 20;
  const int64_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
  const auto rounded = static_cast<size_t>((bytes + alignment - 1) / alignment * alignment);
  void* memory = std::aligned_alloc(static_cast<size_t>(alignment), rounded);
  CHECK(memory != nullptr, "out of memory: {} bytes", bytes);
  if (alignment == kHugePage) (void)madvise(memory, rounded, MADV_HUGEPAGE);  // advice: may be refused
  return memory;
}

void* scratch(Scratch use, int64_t bytes) {
  static thread_local std::array<Buffer, static_cast<size_t>(Scratch::kCount)> buffers;
  Buffer& buffer = buffers[static_cast<size_t>(use)];
  if (buffer.bytes < bytes) {
    buffer.memory.reset();
    buffer.memory.reset(allocate_aligned(bytes));
    buffer.bytes = bytes;
  }
  return buffer.memory.get();
}

}  // namespace flywheel::kernels
