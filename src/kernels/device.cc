#include "kernels/device.h"

#include "kernels/device_code.h"

namespace flywheel::kernels {

void launch_refused(const char* file, int line, const char* condition) {
  check_failed(file, line, condition, "a kernel that cannot run on this shape");
}

Result<DeviceBuffer> Device::allocate(int64_t bytes, MemoryKind kind) {
  CHECK(bytes >= 0, "a buffer of {} bytes", bytes);
  DeviceBuffer buffer;
  buffer.device_ = this, buffer.kind_ = kind;
  if (bytes == 0) return buffer;
  if (const char* error = get_memory(&buffer.memory_, bytes, kind)) {
    return make_error(ErrorCode::kFull, "{} bytes of {} {}, of which {} are free: {}", bytes,
                      kind == MemoryKind::kDevice ? "memory of" : "pinned memory for", name(), free_bytes(),
                      error);
  }
  buffer.bytes_ = bytes;
  return buffer;
}

Result<void> Device::synchronize() {
  return wait();
}

Result<DeviceGraph> Device::capture(const std::function<void()>& record) {
  DeviceGraph graph;
  const char* error = begin_capture();
  if (error == nullptr) {
    record();
    error = end_capture(&graph.handle_);
  }
  if (error != nullptr)
    return make_error(ErrorCode::kUnavailable, "{}: capture of a graph: {}", name(), error);
  graph.device_ = this;
  return graph;
}

DeviceBuffer::~DeviceBuffer() {
  if (memory_ != nullptr) device_->free_memory(memory_, bytes_, kind_);
}

Result<void> DeviceBuffer::upload(const void* host, int64_t bytes, int64_t at) {
  CHECK(bytes >= 0 && at >= 0 && at + bytes <= bytes_, "{} bytes at {} of a buffer of {}", bytes, at, bytes_);
  if (bytes == 0) return {};
  if (const char* error = device_->upload(as<char>() + at, host, bytes)) {
    return make_error(ErrorCode::kUnavailable, "{}: copy of {} bytes to it: {}", device_->name(), bytes,
                      error);
  }
  return {};
}

Result<void> DeviceBuffer::download(void* host, int64_t bytes, int64_t at) const {
  CHECK(bytes >= 0 && at >= 0 && at + bytes <= bytes_, "{} bytes at {} of a buffer of {}", bytes, at, bytes_);
  if (bytes == 0) return {};
  if (const char* error = device_->start_copy(host, as<char>() + at, bytes)) {
    return make_error(ErrorCode::kUnavailable, "{}: copy of {} bytes from it: {}", device_->name(), bytes,
                      error);
  }
  return device_->wait();
}

Result<void> DeviceBuffer::copy(const DeviceBuffer& from, int64_t bytes, int64_t at, int64_t from_at) {
  CHECK(bytes >= 0 && at >= 0 && at + bytes <= bytes_, "{} bytes at {} of a buffer of {}", bytes, at, bytes_);
  CHECK(from_at >= 0 && from_at + bytes <= from.bytes_, "{} bytes from {} of a buffer of {}", bytes, from_at,
        from.bytes_);
  if (bytes == 0) return {};
  CHECK(from.device_ == device_, "a copy between two devices");
  if (const char* error = device_->start_copy(as<char>() + at, from.as<char>() + from_at, bytes)) {
    return make_error(ErrorCode::kUnavailable, "{}: copy of {} bytes: {}", device_->name(), bytes, error);
  }
  return {};
}

Result<void> DeviceBuffer::fill_zero() {
  if (bytes_ == 0) return {};
  if (const char* error = device_->start_fill_zero(memory_, bytes_)) {
    return make_error(ErrorCode::kUnavailable, "{}: zeros into {} bytes: {}", device_->name(), bytes_, error);
  }
  return {};
}

DeviceGraph::~DeviceGraph() {
  if (handle_ != nullptr) device_->free_graph(handle_);
}

Result<void> DeviceGraph::launch() {
  CHECK(device_ != nullptr, "launch() of an empty graph");
  if (handle_ == nullptr) return {};
  if (const char* error = device_->start_graph(handle_)) {
    return make_error(ErrorCode::kUnavailable, "{}: launch of a graph: {}", device_->name(), error);
  }
  return {};
}

}  // namespace flywheel::kernels
