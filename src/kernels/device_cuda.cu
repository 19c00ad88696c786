#include <cuda_runtime.h>

#include <cstdio>

#include "kernels/device_cuda_internal.h"

namespace flywheel::kernels {
namespace {

const char* words(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
cudaStream_t cuda_stream(void* stream) {
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

const char* cuda_words(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

void cuda_use(int index) {
  cudaSetDevice(index);  // what is wrong with it is told by the call that follows
}

const char* cuda_open(int index, void** stream) {
  cudaError_t error = cudaSetDevice(index);
  cudaStream_t made = nullptr;
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
  *stream = made;
  return words(error);
}

void cuda_close(int index, void* stream) {
  cuda_use(index);
  cudaStreamSynchronize(cuda_stream(stream));
  cudaStreamDestroy(cuda_stream(stream));
}

void cuda_name(int index, char* text, size_t size) {
  cudaDeviceProp properties;
  const bool known = cudaGetDeviceProperties(&properties, index) == cudaSuccess;
  std::snprintf(text, size, "%s", known ? properties.name : "no longer there");
}

int64_t cuda_free_bytes(int index) {
  cuda_use(index);
  size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? static_cast<int64_t>(free) : 0;
}

const char* cuda_allocate(int index, void** memory, int64_t bytes, bool pinned) {
  cuda_use(index);
  const auto size = static_cast<size_t>(bytes);
  const cudaError_t error =
      pinned ? cudaHostAlloc(memory, size, cudaHostAllocDefault) : cudaMalloc(memory, size);
  cudaGetLastError();  // no memory is not the next launch's failure
  return words(error);
}

void cuda_free(int index, void* memory, bool pinned) {
  cuda_use(index);
  if (pinned) {
    cudaDeviceSynchronize();  // as cudaFree() does by itself
    cudaFreeHost(memory);
  } else {
    cudaFree(memory);
  }
}

const char* cuda_start_copy(int index, void* stream, void* to, const void* from, int64_t bytes) {
  cuda_use(index);
  return words(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, cuda_stream(stream)));
}

// Of memory that is not pinned CUDA keeps a copy before it returns; pinned memory is waited for.
const char* cuda_upload(int index, void* stream, void* to, const void* host, int64_t bytes) {
  if (const char* error = cuda_start_copy(index, stream, to, host, bytes)) return error;
  cudaPointerAttributes attributes;
  const cudaError_t error = cudaPointerGetAttributes(&attributes, host);
  if (error != cudaSuccess) return words(error);
  return attributes.type == cudaMemoryTypeUnregistered ? nullptr : cuda_wait(index, stream);
}

const char* cuda_start_fill_zero(int index, void* stream, void* memory, int64_t bytes) {
  cuda_use(index);
  return words(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), cuda_stream(stream)));
}

const char* cuda_wait(int index, void* stream) {
  cuda_use(index);
  return words(cudaStreamSynchronize(cuda_stream(stream)));
}

const char* cuda_begin_capture(int index, void* stream) {
  cuda_use(index);
  return words(cudaStreamBeginCapture(cuda_stream(stream), cudaStreamCaptureModeThreadLocal));
}

const char* cuda_end_capture(int index, void* stream, void** graph) {
  cuda_use(index);
  cudaGraph_t captured = nullptr;
  cudaGraphExec_t made = nullptr;
  cudaError_t error = cudaStreamEndCapture(cuda_stream(stream), &captured);
  if (error == cudaSuccess) error = cudaGraphInstantiate(&made, captured, 0);
  if (captured != nullptr) cudaGraphDestroy(captured);
  *graph = made;
  return words(error);
}

const char* cuda_start_graph(int index, void* stream, void* graph) {
  cuda_use(index);
  return words(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), cuda_stream(stream)));
}

void cuda_free_graph(void* graph) {
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

}  // namespace flywheel::kernels
