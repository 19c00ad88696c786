// Device::open(): a GPU over device_cuda.cu.
#include <cstring>

#include "kernels/cublas_lt_internal.h"
#include "kernels/device.h"
#include "kernels/device_cuda_internal.h"

namespace flywheel::kernels {

#ifdef FLYWHEEL_HAS_CUDA
namespace cuda {
const DeviceTable& device_table();
}
namespace {

class Gpu : public Device {
 public:
  Gpu(int index, void* stream, CublasLt* cublas) : index_(index), stream_(stream), cublas_(cublas) {}
  ~Gpu() override {
    cuda_wait(index_, stream_);
    cublas_close(cublas_);
    cuda_close(index_, stream_);
  }

  bool is_emulated() const override { return false; }
  std::string name() const override {
    char words[256] = "";
    cuda_name(index_, words, sizeof words);
    return fmt::format("GPU {} ({})", index_, words);
  }
  int64_t free_bytes() const override { return cuda_free_bytes(index_); }
  const DeviceTable& kernels() const override { return cuda::device_table(); }
  DeviceStream stream() const override {
    cuda_use(index_);
    return {stream_, &failure_, cublas_};
  }

 private:
  const char* get_memory(void** memory, int64_t bytes, MemoryKind kind) override {
    return cuda_allocate(index_, memory, bytes, kind == MemoryKind::kHost);
  }
  void free_memory(void* memory, int64_t, MemoryKind kind) override {
    cuda_free(index_, memory, kind == MemoryKind::kHost);
  }
  const char* start_copy(void* to, const void* from, int64_t bytes) override {
    return cuda_start_copy(index_, stream_, to, from, bytes);
  }
  const char* upload(void* to, const void* host, int64_t bytes) override {
    return cuda_upload(index_, stream_, to, host, bytes);
  }
  const char* start_fill_zero(void* memory, int64_t bytes) override {
    return cuda_start_fill_zero(index_, stream_, memory, bytes);
  }
  Result<void> wait() override {
    const char* error = cuda_wait(index_, stream_);
    const LaunchFailure failure = std::exchange(failure_, {});
    if (failure.kernel != nullptr) {
      return make_error(ErrorCode::kUnavailable, "{}: launch of {}: {}", name(), failure.kernel,
                        failure.words != nullptr ? failure.words : cuda_words(failure.error));
    }
    if (error != nullptr) return make_error(ErrorCode::kUnavailable, "{}: {}", name(), error);
    return {};
  }
  const char* begin_capture() override { return cuda_begin_capture(index_, stream_); }
  const char* end_capture(void** graph) override { return cuda_end_capture(index_, stream_, graph); }
  const char* start_graph(void* graph) override { return cuda_start_graph(index_, stream_, graph); }
  void free_graph(void* graph) override { cuda_free_graph(graph); }

  int index_;
  void* stream_;
  CublasLt* cublas_;
  mutable LaunchFailure failure_;
};

}  // namespace

int device_count() {
  return cuda_device_count();
}

Result<std::unique_ptr<Device>> Device::open(int index) {
  const int count = device_count();
  if (index < 0 || index >= count) {
    return make_error(ErrorCode::kUnavailable, "no GPU {}: this machine shows {} to CUDA{}", index, count,
                      count == 0 ? "; `nvidia-smi` says what the driver sees" : "");
  }
  void* stream = nullptr;
  if (const char* error = cuda_open(index, &stream)) {
    return make_error(ErrorCode::kUnavailable, "GPU {}: {}", index, error);
  }
  CublasLt* cublas = nullptr;
  if (const char* error = cublas_open(index, &cublas)) {
    cuda_close(index, stream);
    return make_error(ErrorCode::kUnavailable, "GPU {}: {}", index, error);
  }
  return std::unique_ptr<Device>(std::make_unique<Gpu>(index, stream, cublas));
}
#else
int device_count() {
  return 0;
}

Result<std::unique_ptr<Device>> Device::open(int index) {
  return make_error(ErrorCode::kUnavailable,
                    "no GPU {}: this build has no CUDA; build with -DFLYWHEEL_CUDA=ON where nvcc is", index);
}
#endif

}  // namespace flywheel::kernels
