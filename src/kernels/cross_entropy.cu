// Cross-entropy of rows of logits on a device, and its gradient in place. A block a row: the first pass over
// the row keeps each thread's running maximum and sum of exponentials (Milakov & Gimelshein 2018), the second
// writes.
//
// Bytes a logit: 4 (read, written). Between the passes a row stays in shared memory, 80 k logits of it; what
// is longer is read again from L2, where 132 such ends of rows of 128 k logits take 12 MB. Memory is the
// limit; two exps a logit are within it.
#include "kernels/device_code.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

constexpr int kThreads = 1024;
constexpr int64_t kKeptBytes = 160 * 1024;  // of shared memory; sm_80 has 163 KB for a block
constexpr float kLowest = -3.0e38f;         // finite, so that a logit of -infinity is no NaN

__global__ void __launch_bounds__(kThreads)
    softmax_cross_entropy_row(bf16* dlogits_RV, float* loss_R, const bf16* logits_RV,
                              const int32_t* targets_R, float scale, int64_t V, int64_t stride,
                              int64_t kept) {
  const int64_t row = blockIdx.x;
  const bf16* logits = logits_RV + row * stride;
  bf16* dlogits = dlogits_RV == nullptr ? nullptr : dlogits_RV + row * stride;
  const int32_t target = targets_R[row];
  if (target < 0) {
    if (threadIdx.x == 0) loss_R[row] = 0;
    if (dlogits == nullptr) return;
    const Vec8 zeros = {};
    for (int64_t v = threadIdx.x * 8; v < stride; v += kThreads * 8) store8(dlogits + v, zeros);
    return;
  }
  const float chosen = to_float(logits[target]);  // before it is overwritten
  auto* keep = dynamic_shared<bf16>();  // the first `kept` logits; a thread reads what it wrote itself
  float top = kLowest, sum = 0;
  for (int64_t v = threadIdx.x * 8; v < V; v += kThreads * 8) {
    const Vec8 x = load8(logits + v);
    if (v < kept) store8(keep + v, x);
    float highest = top;
    UNROLL for (int j = 0; j < 8; ++j) {
      if (v + j < V) highest = fmaxf(highest, to_float(x.v[j]));
    }
    sum *= fast_exp(top - highest);
    top = highest;
    UNROLL for (int j = 0; j < 8; ++j) {
      if (v + j < V) sum += fast_exp(to_float(x.v[j]) - top);
    }
  }
  const float maximum = block_max<kThreads>(top);
  const float log_sum_exp = maximum + logf(block_sum<kThreads>(sum * fast_exp(top - maximum)));
  if (threadIdx.x == 0) loss_R[row] = log_sum_exp - chosen;
  if (dlogits == nullptr) return;
  for (int64_t v = threadIdx.x * 8; v < stride; v += kThreads * 8) {
    Vec8 x = {};
    if (v < V) x = load8(v < kept ? keep + v : logits + v);
    UNROLL for (int j = 0; j < 8; ++j) {
      const float probability = v + j < V ? fast_exp(to_float(x.v[j]) - log_sum_exp) : 0.0f;
      x.v[j] = to_bf16((probability - (v + j == target ? 1.0f : 0.0f)) * scale);
    }
    store8(dlogits + v, x);
  }
}

void softmax_cross_entropy(DeviceStream stream, bf16* dlogits_RV, float* loss_R, const bf16* logits_RV,
                           const int32_t* targets_R, float scale, int64_t R, int64_t V, int64_t stride) {
  DEVICE_CHECK(V > 0 && stride >= V && stride % 8 == 0);
  if (R == 0) return;
  const int64_t bytes = dlogits_RV == nullptr ? 0 : stride * 2 < kKeptBytes ? stride * 2 : kKeptBytes;
  LAUNCH(softmax_cross_entropy_row, static_cast<unsigned>(R), kThreads, bytes, stream)
  (dlogits_RV, loss_R, logits_RV, targets_R, scale, V, stride, bytes / 2);
}

}  // namespace

void add_cross_entropy(DeviceTable& table) {
  table.softmax_cross_entropy = softmax_cross_entropy;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
