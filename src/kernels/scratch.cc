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

void* scratch(Scratch use, int64_t bytes) {
  static thread_local std::array<Buffer, static_cast<size_t>(Scratch::kCount)> buffers;
  Buffer& buffer = buffers[static_cast<size_t>(use)];
  if (buffer.bytes < bytes) {
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.memory.reset();
    buffer.memory.reset(std::aligned_alloc(64, static_cast<size_t>(rounded)));
    CHECK(buffer.memory != nullptr, "out of memory: {} bytes of working memory", rounded);
    buffer.bytes = rounded;
  }
  return buffer.memory.get();
}

}  // namespace flywheel::kernels
