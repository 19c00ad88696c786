// The gradient of attention.cu (Dao 2023, FlashAttention-2), without atomics: each sum is one block's, in the
// order of its tiles, so the bits are the same every time.
//
// Weights are computed again from lse. With delta[t] = sum_d dout[t][d] * o[t][d], P the weights and
// dS = P * (dout * v^T - delta):   dv = P^T * dout   dk = scale * dS^T * q   dq = scale * dS * k
//   attention_delta     delta; reads o and dout once
//   attention_key_rows    a block holds some keys of one KV head and goes over the queries of all of its
//   query
//                         heads that see them. It computes scores transposed, so that weights are at once
//                         operands of the next product, without a way through shared memory
//   attention_query_rows  a block holds some queries of one head and goes over their keys
// Tiles of the other side come in two stages: one is computed while the next is on its way.
//
// 7 products of T * T / 2 * D multiply-adds a head, two more than in one kernel for all three, whose dq would
// be added up by atomics or wait for each other in turns. Limits as in attention.cu.
#include "kernels/attention_device_internal.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

// Tiles of 16 rows of a warp and columns of scores at once: as much as registers hold.
template <int kDim>
struct KeyRows {
  static constexpr int kTilesOfWarp = kDim > 64 ? 1 : 2, kKeys = kAttentionWarps * kTilesOfWarp * 16;
  static constexpr int kQueries = kDim > 64 ? 48 : 32;
  static constexpr int64_t kStageElements = 2 * kQueries * kTileStride<kDim>;
  static constexpr int64_t kBytes = tile_bytes<kDim>(2 * kKeys + 4 * kQueries) + 4 * kQueries * 4;
};
template <int kDim>
struct QueryRows {
  static constexpr int kTilesOfWarp = 2, kQueries = kAttentionWarps * kTilesOfWarp * 16;
  static constexpr int kKeys = 32;
  static constexpr int64_t kBytes = tile_bytes<kDim>(2 * kQueries + 4 * kKeys);
};

// 16 lanes a row of o and dout.
__global__ void attention_delta(float* delta_BHT, const bf16* dout_BTHD, const bf16* o_BTHD, int64_t rows,
                                int64_t T, int64_t H, int64_t D) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 16;
  const int64_t d = threadIdx.x % 16 * 8;
  float sum = 0;
  if (row < rows && d < D) {
    const Vec8 dout = load8(dout_BTHD + row * D + d), o = load8(o_BTHD + row * D + d);
    UNROLL for (int i = 0; i < 8; ++i) sum = fmaf(to_float(dout.v[i]), to_float(o.v[i]), sum);
  }
  sum = warp_sum<16>(sum);
  const int64_t h = row % H, t = row / H % T, b = row / H / T;
  if (row < rows && d == 0) delta_BHT[(b * H + h) * T + t] = sum;
}

struct Gradients {
  Rows dq, dk, dv;
  const float *lse_BHT, *delta_BHT;
  ConstRows dout;
};

template <int kDim>
__global__ void __launch_bounds__(kAttentionThreads, 2) attention_key_rows(Gradients d, DeviceAttention a) {
  using Shape = KeyRows<kDim>;
  constexpr int R = Shape::kTilesOfWarp, kKeys = Shape::kKeys, kQueries = Shape::kQueries;
  bf16* const k_tile = dynamic_shared<bf16>();
  bf16* const v_tile = k_tile + kKeys * kTileStride<kDim>;
  bf16* const stages = v_tile + kKeys * kTileStride<kDim>;  // q and dout each
  float* const values =
      reinterpret_cast<float*>(stages + 2 * Shape::kStageElements);  // lse and delta of each stage
  const int T = static_cast<int>(a.T), head_dim = static_cast<int>(a.head_dim);
  const int G = static_cast<int>(a.kv_heads), group = static_cast<int>(a.heads) / G;
  const int kv_head = static_cast<int>(blockIdx.x) % G, b = static_cast<int>(blockIdx.x) / G;
  const int first_key = static_cast<int>(blockIdx.y) * kKeys;
  const int last_key = first_key + kKeys < T ? first_key + kKeys - 1 : T - 1;
  const Sight sight(a, b);

  // Tiles of queries that see one of the keys: none before the keys' own, and as first() never falls, none
  // after the first whose first query sees none.
  const int first_tile = first_key / kQueries;
  int tiles = (T - first_tile * kQueries + kQueries - 1) / kQueries;
  for (int least = 1; least < tiles;) {
    const int middle = least + (tiles - least) / 2;
    if (sight.first((first_tile + middle) * kQueries) <= last_key) {
      least = middle + 1;
    } else {
      tiles = middle;
    }
  }
  const int steps = tiles * group;
  const auto load_stage = [&](int step) {
    const int head = kv_head * group + step / tiles, query = (first_tile + step % tiles) * kQueries;
    bf16* const q_tile = stages + step % 2 * Shape::kStageElements;
    float* const lse = values + step % 2 * 2 * kQueries;
    const int64_t of_head = static_cast<int64_t>(b * group * G + head) * T;
    load_tile<kQueries, kDim>(q_tile, rows_of(a.q, a, b, head), a.q.stride, query, T, head_dim);
    load_tile<kQueries, kDim>(q_tile + kQueries * kTileStride<kDim>, rows_of(d.dout, a, b, head),
                              d.dout.stride, query, T, head_dim);
    load_values(lse, d.lse_BHT + of_head, query, T, kQueries);
    load_values(lse + kQueries, d.delta_BHT + of_head, query, T, kQueries);
  };

  load_tile<kKeys, kDim>(k_tile, rows_of(a.k, a, b, kv_head), a.k.stride, first_key, T, head_dim);
  load_tile<kKeys, kDim>(v_tile, rows_of(a.v, a, b, kv_head), a.v.stride, first_key, T, head_dim);
  load_stage(0);
  cp_async_commit();

  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_row = warp * R * 16, key = first_key + first_row;  // the warp's
  const int of_tile = first_row * kTileStride<kDim>;
  const float scale_log2 = a.scale * kLog2E;
  float dk[R][kDim / 8][4], dv[R][kDim / 8][4];
  set_zero(dk), set_zero(dv);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load_stage(step + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();  // this stage is there
    const int query = (first_tile + step % tiles) * kQueries, last_query = query + kQueries - 1;
    if (key <= last_query) {
      const bf16* const q_tile = stages + step % 2 * Shape::kStageElements;
      const bf16* const dout_tile = q_tile + kQueries * kTileStride<kDim>;
      const float* const lse = values + step % 2 * 2 * kQueries + lane % 4 * 2;
      const float* const delta = lse + kQueries;
      float weights[R][kQueries / 8][4];  // [key][query]
      set_zero(weights);
      add_product<kDim>(weights, k_tile + of_tile, q_tile);
      const bool all_see = key + R * 16 - 1 <= query && last_query < T && sight.first(last_query) <= key;
      UNROLL for (int n = 0; n < kQueries / 8; ++n) {
        UNROLL for (int i = 0; i < 2; ++i) {
          const int t = query + n * 8 + lane % 4 * 2 + i;
          const float offset = -lse[n * 8 + i] * kLog2E;
          const int first = all_see ? 0 : sight.first(t);
          UNROLL for (int r = 0; r < R; ++r) {
            UNROLL for (int half = 0; half < 2; ++half) {
              float& weight = weights[r][n][2 * half + i];
              const int row = key + r * 16 + half * 8 + lane / 4;
              const bool sees = all_see || (row <= t && row >= first && t < T);
              weight = sees ? fast_exp2(fmaf(weight, scale_log2, offset)) : 0.0f;
            }
          }
        }
      }
      uint32_t packed[R][kQueries / 8][2];
      pack(packed, weights);
      add_weighted<kDim>(dv, packed, dout_tile);
      float of_scores[R][kQueries / 8][4];
      set_zero(of_scores);
      add_product<kDim>(of_scores, v_tile + of_tile, dout_tile);
      UNROLL for (int n = 0; n < kQueries / 8; ++n) {
        UNROLL for (int i = 0; i < 4; ++i) {
          UNROLL for (int r = 0; r < R; ++r) of_scores[r][n][i] =
              weights[r][n][i] * (of_scores[r][n][i] - delta[n * 8 + i % 2]);
        }
      }
      pack(packed, of_scores);
      add_weighted<kDim>(dk, packed, q_tile);
    }
    __syncthreads();  // nobody reads this stage any more
  }
  cp_async_wait<0>();

  float one[R][2], scale[R][2];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int half = 0; half < 2; ++half) one[r][half] = 1, scale[r][half] = a.scale;
  }
  store_rows<kDim>(rows_of(d.dk, a, b, kv_head), d.dk.stride, k_tile + of_tile, dk, scale, key, T, head_dim);
  store_rows<kDim>(rows_of(d.dv, a, b, kv_head), d.dv.stride, v_tile + of_tile, dv, one, key, T, head_dim);
}

template <int kDim>
__global__ void __launch_bounds__(kAttentionThreads, 2) attention_query_rows(Gradients d, DeviceAttention a) {
  using Shape = QueryRows<kDim>;
  constexpr int R = Shape::kTilesOfWarp, kKeys = Shape::kKeys, kQueries = Shape::kQueries;
  bf16* const q_tile = dynamic_shared<bf16>();
  bf16* const dout_tile = q_tile + kQueries * kTileStride<kDim>;
  bf16* const stages = dout_tile + kQueries * kTileStride<kDim>;  // k and v each
  constexpr int kStageElements = 2 * kKeys * kTileStride<kDim>;
  const int T = static_cast<int>(a.T), head_dim = static_cast<int>(a.head_dim), H = static_cast<int>(a.heads);
  const int head = static_cast<int>(blockIdx.x) % H, b = static_cast<int>(blockIdx.x) / H;
  const int kv_head = head / (H / static_cast<int>(a.kv_heads));
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kQueries;
  const bf16* const k = rows_of(a.k, a, b, kv_head);
  const bf16* const v = rows_of(a.v, a, b, kv_head);
  const Sight sight(a, b);
  const int first_key = sight.first(first_query) / kKeys * kKeys;
  const int end = first_query + kQueries < T ? first_query + kQueries : T;
  const auto load_stage = [&](int key) {
    bf16* const k_tile = stages + key / kKeys % 2 * kStageElements;
    load_tile<kKeys, kDim>(k_tile, k, a.k.stride, key, T, head_dim);
    load_tile<kKeys, kDim>(k_tile + kKeys * kTileStride<kDim>, v, a.v.stride, key, T, head_dim);
  };
  load_tile<kQueries, kDim>(q_tile, rows_of(a.q, a, b, head), a.q.stride, first_query, T, head_dim);
  load_tile<kQueries, kDim>(dout_tile, rows_of(d.dout, a, b, head), d.dout.stride, first_query, T, head_dim);
  load_stage(first_key);
  cp_async_commit();

  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_row = warp * R * 16, query = first_query + first_row, last_query = query + R * 16 - 1;
  const int of_tile = first_row * kTileStride<kDim>;
  const int hidden_before = sight.first(last_query);
  const float scale_log2 = a.scale * kLog2E;
  float offset[R][2], delta[R][2], scale[R][2];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int half = 0; half < 2; ++half) {
      const int t = query + r * 16 + half * 8 + lane / 4;
      const int64_t at = static_cast<int64_t>(b * H + head) * T + t;
      offset[r][half] = t < T ? -d.lse_BHT[at] * kLog2E : 0;
      delta[r][half] = t < T ? d.delta_BHT[at] : 0;
      scale[r][half] = a.scale;
    }
  }
  float dq[R][kDim / 8][4];
  set_zero(dq);
  for (int key = first_key; key < end; key += kKeys) {
    if (key + kKeys < end) load_stage(key + kKeys);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();  // this stage is there
    if (key <= last_query) {
      const bf16* const k_tile = stages + key / kKeys % 2 * kStageElements;
      float weights[R][kKeys / 8][4], of_scores[R][kKeys / 8][4];
      set_zero(weights), set_zero(of_scores);
      add_product<kDim>(weights, q_tile + of_tile, k_tile);
      add_product<kDim>(of_scores, dout_tile + of_tile, k_tile + kKeys * kTileStride<kDim>);
      const bool all_see = key + kKeys - 1 <= query && key >= hidden_before;
      UNROLL for (int r = 0; r < R; ++r) {
        UNROLL for (int half = 0; half < 2; ++half) {
          const int t = query + r * 16 + half * 8 + lane / 4, first = all_see ? 0 : sight.first(t);
          UNROLL for (int n = 0; n < kKeys / 8; ++n) {
            UNROLL for (int i = 2 * half; i < 2 * half + 2; ++i) {
              const int column = key + n * 8 + lane % 4 * 2 + i % 2;
              const float weight = fast_exp2(fmaf(weights[r][n][i], scale_log2, offset[r][half]));
              const bool sees = all_see || (column <= t && column >= first);
              of_scores[r][n][i] = sees ? weight * (of_scores[r][n][i] - delta[r][half]) : 0.0f;
            }
          }
        }
      }
      uint32_t packed[R][kKeys / 8][2];
      pack(packed, of_scores);
      add_weighted<kDim>(dq, packed, k_tile);
    }
    __syncthreads();  // nobody reads this stage any more
  }
  cp_async_wait<0>();
  store_rows<kDim>(rows_of(d.dq, a, b, head), d.dq.stride, q_tile + of_tile, dq, scale, query, T, head_dim);
}

template <int kDim>
void launch_backward(DeviceStream stream, const Gradients& d, const DeviceAttention& a) {
  using Keys = KeyRows<kDim>;
  using Queries = QueryRows<kDim>;
  const dim3 keys(static_cast<unsigned>(a.B * a.kv_heads), static_cast<unsigned>(ceil_div(a.T, Keys::kKeys)));
  const dim3 queries(static_cast<unsigned>(a.B * a.heads),
                     static_cast<unsigned>(ceil_div(a.T, Queries::kQueries)));
  LAUNCH((attention_key_rows<kDim>), keys, kAttentionThreads, Keys::kBytes, stream)(d, a);
  LAUNCH((attention_query_rows<kDim>), queries, kAttentionThreads, Queries::kBytes, stream)(d, a);
}

void attention_backward(DeviceStream stream, Rows dq, Rows dk, Rows dv, float* delta_BHT,
                        const bf16* dout_BTHD, const bf16* o_BTHD, const float* lse_BHT,
                        const DeviceAttention& a) {
  check_attention(a);
  DEVICE_CHECK(dq.stride % 8 == 0 && dk.stride % 8 == 0 && dv.stride % 8 == 0);
  const int64_t rows = a.B * a.T * a.heads;
  if (rows == 0) return;
  constexpr int kThreads = 256;
  LAUNCH(attention_delta, static_cast<unsigned>(ceil_div(rows * 16, kThreads)), kThreads, 0, stream)
  (delta_BHT, dout_BTHD, o_BTHD, rows, a.T, a.heads, a.head_dim);
  const Gradients d{dq, dk, dv, lse_BHT, delta_BHT, without_gaps(dout_BTHD, a)};
  if (a.head_dim <= 64) {
    launch_backward<64>(stream, d, a);
  } else {
    launch_backward<128>(stream, d, a);
  }
}

}  // namespace

void add_attention_backward(DeviceTable& table) {
  table.attention_backward = attention_backward;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
