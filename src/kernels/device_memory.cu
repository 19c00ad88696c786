// DeviceBuffer over CUDA's runtime. The C++20 of base stays out of what nvcc sees: device.cc wraps this.
#include <cuda_runtime.h>

#include <cstdint>

namespace flywheel::kernels {

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
const char* cuda_allocate(void** memory, int64_t bytes) {
  const cudaError_t error = cudaMalloc(memory, static_cast<size_t>(bytes));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
void cuda_free(void* memory) {
  cudaFree(memory);
}
const char* cuda_copy(void* to, const void* from, int64_t bytes) {
  const cudaError_t error = cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace flywheel::kernels
