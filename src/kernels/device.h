// Memory on a GPU: the seam between host rooms and the .cu siblings of the kernels.
//
// In a build without CUDA, or on a machine without a GPU, device_count() is 0 and allocation says why.
// Ownership: a DeviceBuffer owns its memory. Threads: one at a time per buffer. Errors: kUnavailable without
// a device, kFull when its memory is used up.
//
//   ASSIGN_OR_RETURN(DeviceBuffer x, DeviceBuffer::allocate(bytes));
//   RETURN_IF_ERROR(x.upload(host, bytes));
//   rms_norm_device(y.as<float>(), x.as<float>(), w.as<float>(), T, D, 1e-5f);
//   RETURN_IF_ERROR(y.download(host, bytes));           // waits for what was started before
#pragma once

#include <cstdint>
#include <utility>

#include "base/result.h"

namespace flywheel::kernels {

int device_count();

class DeviceBuffer {
 public:
  static Result<DeviceBuffer> allocate(int64_t bytes);
  DeviceBuffer() = default;
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  Result<void> upload(const void* host, int64_t bytes);
  Result<void> download(void* host, int64_t bytes) const;
  int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() {
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace flywheel::kernels
