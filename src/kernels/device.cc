#include "kernels/device.h"

namespace flywheel::kernels {

#ifdef FLYWHEEL_HAS_CUDA
// device_memory.cu. Null: done; else CUDA's words for what went wrong.
int cuda_device_count();
const char* cuda_allocate(void** memory, int64_t bytes);
void cuda_free(void* memory);
const char* cuda_copy(void* to, const void* from, int64_t bytes);
#else
namespace {
constexpr const char* kNoCuda = "this build has no CUDA; build with -DFLYWHEEL_CUDA=ON";
int cuda_device_count() {
  return 0;
}
const char* cuda_allocate(void**, int64_t) {
  return kNoCuda;
}
void cuda_free(void*) {}
const char* cuda_copy(void*, const void*, int64_t) {
  return kNoCuda;
}
}  // namespace
#endif

int device_count() {
  return cuda_device_count();
}

Result<DeviceBuffer> DeviceBuffer::allocate(int64_t bytes) {
  DeviceBuffer buffer;
  if (const char* error = cuda_allocate(&buffer.memory_, bytes)) {
    return make_error(device_count() == 0 ? ErrorCode::kUnavailable : ErrorCode::kFull,
                      "{} bytes on the GPU: {}", bytes, error);
  }
  buffer.bytes_ = bytes;
  return buffer;
}

DeviceBuffer::~DeviceBuffer() {
  if (memory_ != nullptr) cuda_free(memory_);
}

Result<void> DeviceBuffer::upload(const void* host, int64_t bytes) {
  CHECK(bytes <= bytes_, "{} bytes into a buffer of {}", bytes, bytes_);
  if (const char* error = cuda_copy(memory_, host, bytes)) {
    return make_error(ErrorCode::kUnavailable, "copy of {} bytes to the GPU: {}", bytes, error);
  }
  return {};
}

Result<void> DeviceBuffer::download(void* host, int64_t bytes) const {
  CHECK(bytes <= bytes_, "{} bytes from a buffer of {}", bytes, bytes_);
  if (const char* error = cuda_copy(host, memory_, bytes)) {
    return make_error(ErrorCode::kUnavailable, "copy of {} bytes from the GPU: {}", bytes, error);
  }
  return {};
}

}  // namespace flywheel::kernels
