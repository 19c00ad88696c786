#include "kernels/embedding.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "kernels/quant.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {

void embedding(float* y_TD, const int32_t* ids_T, DType dtype, const void* table_VD, int64_t T, int64_t V,
               int64_t D, ThreadPool& pool) {
  const int64_t bytes = row_bytes(dtype, D);
  pool.parallel_for(T, std::max<int64_t>(1, 16384 / D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (ids_T[t] == kForeignToken) {
        std::fill_n(y_TD + t * D, D, 0.0f);
        continue;
      }
      CHECK(ids_T[t] >= 0 && ids_T[t] < V, "token {} of a vocabulary of {}", ids_T[t], V);
      const auto* row = static_cast<const uint8_t*>(table_VD) + ids_T[t] * bytes;
      if (is_quantized(dtype)) {
        dequantize_row(y_TD + t * D, dtype, row, D);
      } else {
        to_f32(y_TD + t * D, row, dtype, D);
      }
    }
  });
}

// Threads share the columns, so that a row that occurs twice is summed in order of t.
void embedding_backward(float* dtable_VD, const int32_t* ids_T, const float* dy_TD, int64_t T, int64_t D,
                        ThreadPool& pool) {
  const auto add = table().add;
  pool.parallel_for(D, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < T; ++t) {
      if (ids_T[t] == kForeignToken) continue;
      float* row = dtable_VD + ids_T[t] * D + begin;
      add(row, row, dy_TD + t * D + begin, end - begin);
    }
  });
}

void token_order(int32_t* order_T, int32_t* run_end_T, const int32_t* ids_T, int64_t T) {
  std::iota(order_T, order_T + T, 0);
  std::stable_sort(order_T, order_T + T, [&](int32_t a, int32_t b) { return ids_T[a] < ids_T[b]; });
  std::iota(run_end_T, run_end_T + T, 0);
  for (int64_t begin = 0, end = 0; begin < T; begin = end) {
    const int32_t id = ids_T[order_T[begin]];
    while (end < T && ids_T[order_T[end]] == id) ++end;
    if (id != kForeignToken) run_end_T[begin] = static_cast<int32_t>(end);
  }
}

}  // namespace flywheel::kernels
