// Cross-entropy of rows of logits on a device, and its gradient in place. A block a row: the first pass over
// the row keeps each thread's running maximum and sum of exponentials (Milakov & Gimelshein 2018), the second
// writes.
//
// Bytes a logit: 4 (read, written). The second read comes from the 50 MB of L2: 132 blocks of 1024 threads
// have 34 MB of rows of 128 k logits in work. Memory is the limit; two exps a logit are within it.
#include "kernels/device_code.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

constexpr int kThreads = 1024;
constexpr float kLowest = -3.0e38f;  // finite, so that a logit of -infinity is no NaN

__global__ void __launch_bounds__(kThreads)
    softmax_cross_entropy_row(bf16* dlogits_RV, float* loss_R, const bf16* logits_RV,
                              const int32_t* targets_R, float scale, int64_t V, int64_t stride) {
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
  float top = kLowest, sum = 0;
  for (int64_t v = threadIdx.x * 8; v < V; v += kThreads * 8) {
    const Vec8 x = load8(logits + v);
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
    Vec8 x = load8(logits + v);
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
  LAUNCH(softmax_cross_entropy_row, static_cast<unsigned>(R), kThreads, 0, stream)
  (dlogits_RV, loss_R, logits_RV, targets_R, scale, V, stride);
}

}  // namespace

void add_cross_entropy(DeviceTable& table) {
  table.softmax_cross_entropy = softmax_cross_entropy;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
