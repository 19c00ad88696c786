// y_TD[t] = table_VD[ids_T[t]], and its gradient. The table is in any DType, rows as in the file.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/dtype.h"

namespace flywheel::kernels {

// An id that another rank's part of the table has: its row is zero and adds no gradient.
inline constexpr int32_t kForeignToken = -1;

// Every other id must be in [0, V).
void embedding(float* y_TD, const int32_t* ids_T, DType dtype, const void* table_VD, int64_t T, int64_t V,
               int64_t D, ThreadPool& pool);
// dtable_VD[ids[t]] += dy_TD[t], in order of t.
void embedding_backward(float* dtable_VD, const int32_t* ids_T, const float* dy_TD, int64_t T, int64_t D,
                        ThreadPool& pool);

// For the gradient on a device (embedding.cu). order_T: the positions, sorted by their ids, those of one id
// as they stood. run_end_T[i]: where the run of one id ends that begins at order_T[i]; i itself where none
// begins, or one of kForeignToken.
void token_order(int32_t* order_T, int32_t* run_end_T, const int32_t* ids_T, int64_t T);

}  // namespace flywheel::kernels
