// One GPU, or the emulated device of tests: memory, a stream of work in order, and the kernels that run on
// it.
//
// Everything that copies or starts a kernel goes to the device's one stream and runs in order; the host goes
// on at once. What was started is done after synchronize() or a download(). A step that does the same each
// time is captured once (a CUDA graph) and launched again.
//
// Ownership: buffers and graphs belong to their device and must end before it. Threads: one at a time a
// device, its buffers included. Errors: kUnavailable without a GPU or in a build without CUDA, in words;
// kFull when its memory is used up; what a kernel did wrong is told by the next synchronize() or download(),
// and by all after it where CUDA's context is lost.
//
//   ASSIGN_OR_RETURN(const std::unique_ptr<Device> device, Device::open(0));
//   ASSIGN_OR_RETURN(DeviceBuffer x, device->allocate(bytes));
//   RETURN_IF_ERROR(x.upload(host, bytes));
//   device->kernels().rms_norm(device->stream(), ...);
//   RETURN_IF_ERROR(x.download(host, bytes));
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "base/result.h"
#include "kernels/device_table.h"

namespace flywheel::kernels {

class Device;

// GPUs that this process may use: 0 in a build without CUDA.
int device_count();

enum class MemoryKind {
  kDevice,
  kHost,  // of the host, pinned: copies from and to it run while the host goes on
};

// Memory of a device, or pinned memory for copies that the host does not wait for.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(device_, other.device_), std::swap(kind_, other.kind_);
    std::swap(memory_, other.memory_), std::swap(bytes_, other.bytes_);
    return *this;
  }

  // `host` may change when upload() returns; download() waits for what was started before.
  Result<void> upload(const void* host, int64_t bytes, int64_t at = 0);
  Result<void> download(void* host, int64_t bytes, int64_t at = 0) const;
  // In turn on the stream, from or to any buffer of the device; pinned memory must stay as it is until then.
  Result<void> copy(const DeviceBuffer& from, int64_t bytes, int64_t at = 0, int64_t from_at = 0);
  Result<void> fill_zero();

  int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() {
    return static_cast<T*>(memory_);
  }
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(memory_);
  }

 private:
  friend class Device;
  Device* device_ = nullptr;
  MemoryKind kind_ = MemoryKind::kDevice;
  void* memory_ = nullptr;
  int64_t bytes_ = 0;
};

// Work that was captured once. Holds the arguments of its kernels as they were: what changes from launch to
// launch lies in device memory.
class DeviceGraph {
 public:
  DeviceGraph() = default;
  ~DeviceGraph();
  DeviceGraph(DeviceGraph&& other) noexcept { *this = std::move(other); }
  DeviceGraph& operator=(DeviceGraph&& other) noexcept {
    std::swap(device_, other.device_), std::swap(handle_, other.handle_);
    return *this;
  }
  // Starts it on the stream.
  Result<void> launch();

 private:
  friend class Device;
  Device* device_ = nullptr;
  void* handle_ = nullptr;
};

class Device {
 public:
  static Result<std::unique_ptr<Device>> open(int index);
  // Runs kernels on compute_pool(), in so many bytes of memory. For tests.
  static std::unique_ptr<Device> emulated(int64_t bytes = int64_t{1} << 30);
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  virtual bool is_emulated() const = 0;
  virtual std::string name() const = 0;
  virtual int64_t free_bytes() const = 0;
  virtual const DeviceTable& kernels() const = 0;
  // For the calling thread, whose CUDA calls go to this device from here on.
  virtual DeviceStream stream() const = 0;

  // Aligned to 256 bytes; what is in it is not defined. `bytes` of 0 is a buffer without memory.
  Result<DeviceBuffer> allocate(int64_t bytes, MemoryKind kind = MemoryKind::kDevice);
  // Waits for all that was started.
  Result<void> synchronize();
  // What `record` starts on the stream does not run: it is kept. `record` starts kernels, copy() and
  // fill_zero() alone.
  Result<DeviceGraph> capture(const std::function<void()>& record);

 protected:
  Device() = default;

 private:
  friend class DeviceBuffer;
  friend class DeviceGraph;
  // Null: done (or started); else words for what went wrong.
  virtual const char* get_memory(void** memory, int64_t bytes, MemoryKind kind) = 0;
  virtual void free_memory(void* memory, int64_t bytes, MemoryKind kind) = 0;  // waits for what uses it
  virtual const char* start_copy(void* to, const void* from, int64_t bytes) = 0;
  virtual const char* upload(void* to, const void* host, int64_t bytes) = 0;  // `host` may change after it
  virtual const char* start_fill_zero(void* memory, int64_t bytes) = 0;
  virtual Result<void> wait() = 0;
  virtual const char* begin_capture() = 0;
  virtual const char* end_capture(void** graph) = 0;
  virtual const char* start_graph(void* graph) = 0;
  virtual void free_graph(void* graph) = 0;
};

}  // namespace flywheel::kernels
