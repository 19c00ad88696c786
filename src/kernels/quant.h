// What linear.h and embedding.h need of the quantized types. Rows are GGUF blocks as in the file.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/dtype.h"

namespace flywheel::kernels {

// Bytes of the packed form of an [N, K] weight, and the packing of it (`packed` is 64-byte aligned).
int64_t quant_packed_bytes(DType dtype, int64_t N, int64_t K);
void quant_pack(uint8_t* packed, DType dtype, const void* rows, int64_t N, int64_t K, ThreadPool& pool);

// y_MN = x_MK * W^T; same promise about order as linear().
void quant_linear(float* y_MN, const float* x_MK, DType dtype, const uint8_t* packed, int64_t M, int64_t N,
                  int64_t K, ThreadPool& pool);

// One row of blocks as in the file, to K floats.
void dequantize_row(float* out_K, DType dtype, const void* row, int64_t K);

}  // namespace flywheel::kernels
