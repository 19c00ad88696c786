// CUDA's runtime as device_gpu.cc calls it: the C++20 of base stays out of what nvcc sees (device_cuda.cu).
// Each makes `index` the calling thread's device. Null: done, or started on the stream; else CUDA's words for
// what went wrong.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flywheel::kernels {

int cuda_device_count();
const char* cuda_words(int error);
void cuda_use(int index);
const char* cuda_open(int index, void** stream);
void cuda_close(int index, void* stream);
void cuda_name(int index, char* words, size_t size);
int64_t cuda_free_bytes(int index);
const char* cuda_allocate(int index, void** memory, int64_t bytes, bool pinned);
void cuda_free(int index, void* memory, bool pinned);
const char* cuda_start_copy(int index, void* stream, void* to, const void* from, int64_t bytes);
const char* cuda_upload(int index, void* stream, void* to, const void* host, int64_t bytes);
const char* cuda_start_fill_zero(int index, void* stream, void* memory, int64_t bytes);
const char* cuda_wait(int index, void* stream);
const char* cuda_begin_capture(int index, void* stream);
const char* cuda_end_capture(int index, void* stream, void** graph);
const char* cuda_start_graph(int index, void* stream, void* graph);
void cuda_free_graph(void* graph);

}  // namespace flywheel::kernels
