// Causal attention of whole sequences on a GPU: forward (Dao 2023, FlashAttention-2). attention_backward.cu
// has the gradient.
//
// A block of 4 warps holds 128 queries of one head and goes over their keys in tiles of 64, with a running
// maximum and sum of each row (Milakov & Gimelshein 2018); scores are never in memory. While a tile's scores
// are made its values are on their way, and while it is weighted the next tile's keys. Tiles that no query of
// the block sees (later ones, those before the window or the sample) are not read; the longest blocks start
// first.
//
// Reads q, k, v once (k, v once for each 128 queries, from L2), writes o and lse. 4 * T * T / 2 * D
// operations a head: with D = 128 and T = 2,048 that is 256 a byte of q, k, v and o, so the tensor cores are
// the limit. A warp takes 32 queries: with 16, shared memory (128 bytes a clock) would give operands for half
// of what mma.sync does. mma.sync itself reaches about 60% of Hopper's peak; wgmma is what would go beyond.
#include "kernels/attention_device_internal.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

constexpr int kTilesOfWarp = 2;  // of 16 queries
constexpr int kQueries = kAttentionWarps * kTilesOfWarp * 16;
template <int kDim>
constexpr int kTileKeys = kDim > 64 ? 48 : 64;  // as many as registers hold scores of

// The running softmax of a lane's rows. The lanes of a row (4) agree on `top`; each has its own columns' part
// of `total` until the end.
struct RunningSoftmax {
  float top[kTilesOfWarp][2], total[kTilesOfWarp][2];
};

// Scores become weights, and sums of earlier keys are scaled to the new top.
template <int kDim, int kKeys>
__device__ inline void weigh(float (&scores)[kTilesOfWarp][kKeys / 8][4],
                             float (&sums)[kTilesOfWarp][kDim / 8][4], RunningSoftmax& softmax,
                             float scale_log2) {
  UNROLL for (int r = 0; r < kTilesOfWarp; ++r) {
    UNROLL for (int half = 0; half < 2; ++half) {
      float top = softmax.top[r][half];
      UNROLL for (int n = 0; n < kKeys / 8; ++n) {
        top = fmaxf(top, fmaxf(scores[r][n][2 * half], scores[r][n][2 * half + 1]));
      }
      top = warp_max<4>(top);
      // A row that has seen no key yet has no top, and all its weights are exp2(-infinity).
      const float offset = top == -INFINITY ? 0.0f : -top * scale_log2;
      const float shrink = fast_exp2(fmaf(softmax.top[r][half], scale_log2, offset));
      float total = softmax.total[r][half] * shrink;
      UNROLL for (int n = 0; n < kKeys / 8; ++n) {
        UNROLL for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[r][n][i] = fast_exp2(fmaf(scores[r][n][i], scale_log2, offset));
          total += scores[r][n][i];
        }
      }
      UNROLL for (int n = 0; n < kDim / 8; ++n) {
        sums[r][n][2 * half] *= shrink;
        sums[r][n][2 * half + 1] *= shrink;
      }
      softmax.top[r][half] = top;
      softmax.total[r][half] = total;
    }
  }
}

// Keys that a query does not see get -infinity. `query` and `key` are those of the lane's first element.
template <int N>
__device__ inline void hide(float (&scores)[kTilesOfWarp][N][4], const Sight& sight, int query, int key) {
  UNROLL for (int r = 0; r < kTilesOfWarp; ++r) {
    UNROLL for (int half = 0; half < 2; ++half) {
      const int t = query + r * 16 + half * 8, first = sight.first(t);
      UNROLL for (int n = 0; n < N; ++n) {
        UNROLL for (int i = 0; i < 2; ++i) {
          const int column = key + n * 8 + i;
          if (column > t || column < first) scores[r][n][2 * half + i] = -INFINITY;
        }
      }
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_forward(bf16* o, float* lse_BHT, DeviceAttention a) {
  constexpr int kKeys = kTileKeys<kDim>;
  bf16* const q_tile = dynamic_shared<bf16>();
  bf16* const k_tile = q_tile + kQueries * kTileStride<kDim>;
  bf16* const v_tile = k_tile + kKeys * kTileStride<kDim>;
  const int T = static_cast<int>(a.T), head_dim = static_cast<int>(a.head_dim), H = static_cast<int>(a.heads);
  const int head = static_cast<int>(blockIdx.x) % H, b = static_cast<int>(blockIdx.x) / H;
  const int kv_head = head / (H / static_cast<int>(a.kv_heads));
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kQueries;
  const bf16* const k = rows_of(a.k, a, b, kv_head);
  const bf16* const v = rows_of(a.v, a, b, kv_head);
  const Sight sight(a, b);

  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_row = warp * kTilesOfWarp * 16;  // the warp's, in the block
  const int query = first_query + first_row, last_query = query + kTilesOfWarp * 16 - 1;
  const int hidden_before = sight.first(last_query);  // all of the warp's queries see the keys from here on
  const float scale_log2 = a.scale * kLog2E;
  float sums[kTilesOfWarp][kDim / 8][4];
  set_zero(sums);
  RunningSoftmax softmax;
  UNROLL for (int r = 0; r < kTilesOfWarp; ++r) {
    UNROLL for (int half = 0; half < 2; ++half) softmax.top[r][half] = -INFINITY, softmax.total[r][half] = 0;
  }

  const int end = first_query + kQueries < T ? first_query + kQueries : T;
  int key = sight.first(first_query) / kKeys * kKeys;
  load_tile<kQueries, kDim>(q_tile, rows_of(a.q, a, b, head), a.q.stride, first_query, T, head_dim);
  load_tile<kKeys, kDim>(k_tile, k, a.k.stride, key, T, head_dim);
  cp_async_commit();
  for (; key < end; key += kKeys) {
    cp_async_wait<0>();
    __syncthreads();  // the keys are there, and nobody reads the values before them any more
    load_tile<kKeys, kDim>(v_tile, v, a.v.stride, key, T, head_dim);
    cp_async_commit();
    float scores[kTilesOfWarp][kKeys / 8][4];
    set_zero(scores);
    const bool sees = key <= last_query;
    if (sees) add_product<kDim>(scores, q_tile + first_row * kTileStride<kDim>, k_tile);
    cp_async_wait<0>();
    __syncthreads();  // the values are there, and nobody reads the keys any more
    if (key + kKeys < end) load_tile<kKeys, kDim>(k_tile, k, a.k.stride, key + kKeys, T, head_dim);
    cp_async_commit();
    if (!sees) continue;
    if (key + kKeys - 1 > query || key < hidden_before)
      hide(scores, sight, query + lane / 4, key + lane % 4 * 2);
    weigh<kDim, kKeys>(scores, sums, softmax, scale_log2);
    uint32_t weights[kTilesOfWarp][kKeys / 8][2];
    pack(weights, scores);
    add_weighted<kDim>(sums, weights, v_tile);
  }

  float inverse[kTilesOfWarp][2];
  UNROLL for (int r = 0; r < kTilesOfWarp; ++r) {
    UNROLL for (int half = 0; half < 2; ++half) {
      const float total = warp_sum<4>(softmax.total[r][half]);
      inverse[r][half] = 1.0f / total;
      const int t = query + r * 16 + half * 8 + lane / 4;
      if (lane % 4 == 0 && t < T) {
        lse_BHT[(b * H + head) * a.T + t] = fmaf(softmax.top[r][half], a.scale, logf(total));
      }
    }
  }
  store_rows<kDim>(rows_of(Rows{o, a.heads * a.head_dim}, a, b, head), a.heads * a.head_dim,
                   q_tile + first_row * kTileStride<kDim>, sums, inverse, query, T, head_dim);
}

template <int kDim>
void launch_forward(DeviceStream stream, bf16* o, float* lse_BHT, const DeviceAttention& a) {
  const dim3 grid(static_cast<unsigned>(a.B * a.heads), static_cast<unsigned>(ceil_div(a.T, kQueries)));
  LAUNCH((attention_forward<kDim>), grid, kAttentionThreads, tile_bytes<kDim>(kQueries + 2 * kTileKeys<kDim>),
         stream)
  (o, lse_BHT, a);
}

void attention(DeviceStream stream, bf16* o_BTHD, float* lse_BHT, const DeviceAttention& a) {
  check_attention(a);
  if (a.B * a.T == 0) return;
  if (a.head_dim <= 64) {
    launch_forward<64>(stream, o_BTHD, lse_BHT, a);
  } else {
    launch_forward<128>(stream, o_BTHD, lse_BHT, a);
  }
}

}  // namespace

void add_attention(DeviceTable& table) {
  table.attention = attention;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
