// Embedding rows on a device, and their gradient without atomics: positions sorted by id (token_order() of
// embedding.h) lie together, and a warp adds those of one id, in their order, to 256 columns of its row.
//
// Bytes of a token: forward 4 D (row read, row written); backward 2 D for dy, and 8 D for each id that occurs
// (its row of f32 read and written once). Memory is the limit, but for an id that is most of the batch: one
// warp adds its rows.
#include "kernels/device_code.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 8;  // rows that are on their way from memory at the same time

__global__ void __launch_bounds__(kThreads)
    embedding_vectors(bf16* y_TD, const int32_t* ids_T, const bf16* table_VD, int64_t T, int64_t D) {
  const int64_t each = D / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= T * each) return;
  const int64_t id = ids_T[i / each];
  Vec8 row = {};
  if (id >= 0) row = load8(table_VD + id * D + i % each * 8);
  store8(y_TD + i * 8, row);
}

__global__ void __launch_bounds__(kThreads)
    embedding_backward_runs(float* dtable_VD, const int32_t* ids_T, const int32_t* order_T,
                            const int32_t* run_end_T, const bf16* dy_TD, int64_t T, int64_t D) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kWarp * 8 + threadIdx.x % kWarp * 8;
  if (begin >= T || column >= D) return;
  const int64_t end = run_end_T[begin];
  if (begin >= end) return;  // inside another's run, or of no row
  float* row = dtable_VD + static_cast<int64_t>(ids_T[order_T[begin]]) * D + column;
  Vec4f low = load4(row), high = load4(row + 4);
  for (int64_t r = begin; r < end; r += kAtOnce) {
    Vec8 dy[kAtOnce];
    UNROLL for (int k = 0; k < kAtOnce; ++k) {
      if (r + k < end) dy[k] = load8(dy_TD + static_cast<int64_t>(order_T[r + k]) * D + column);
    }
    UNROLL for (int k = 0; k < kAtOnce; ++k) {
      if (r + k >= end) continue;
      UNROLL for (int j = 0; j < 4; ++j) {
        low.v[j] += to_float(dy[k].v[j]);
        high.v[j] += to_float(dy[k].v[4 + j]);
      }
    }
  }
  store4(row, low);
  store4(row + 4, high);
}

void embedding(DeviceStream stream, bf16* y_TD, const int32_t* ids_T, const bf16* table_VD, int64_t T,
               int64_t D) {
  DEVICE_CHECK(D > 0 && D % 8 == 0);
  if (T == 0) return;
  LAUNCH(embedding_vectors, static_cast<unsigned>(ceil_div(T * D / 8, kThreads)), kThreads, 0, stream)
  (y_TD, ids_T, table_VD, T, D);
}

void embedding_backward(DeviceStream stream, float* dtable_VD, const int32_t* ids_T, const int32_t* order_T,
                        const int32_t* run_end_T, const bf16* dy_TD, int64_t T, int64_t D) {
  DEVICE_CHECK(D > 0 && D % 8 == 0);
  if (T == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(T, kThreads / kWarp)),
                  static_cast<unsigned>(ceil_div(D, kWarp * 8)));
  LAUNCH(embedding_backward_runs, grid, kThreads, 0, stream)
  (dtable_VD, ids_T, order_T, run_end_T, dy_TD, T, D);
}

}  // namespace

void add_embedding(DeviceTable& table) {
  table.embedding = embedding;
  table.embedding_backward = embedding_backward;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
