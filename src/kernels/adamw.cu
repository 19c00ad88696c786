// AdamW on a device, operation by operation that of adamw_lanes() (elementwise_internal.h): the same
// gradients, terms and scale give the bits of the CPU's variants with fused multiply-adds. The norm of the
// gradients and the clipping are computed here too, so that no step waits for the host.
//
// Bytes a weight: 30 (weight, both moments and gradient read, the first three and the bf16 copy written), and
// 4 for the norm. Memory is the limit.
#include "kernels/device_code.h"
#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) squares_of_parts(double* parts, const float* g, int64_t n) {
  double sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * 4;
  int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4;
  for (; i + 4 <= n; i += step) {
    const Vec4f x = load4(g + i);
    UNROLL for (int j = 0; j < 4; ++j) sum += static_cast<double>(x.v[j]) * static_cast<double>(x.v[j]);
  }
  for (int64_t k = i; k < n && k < i + 4; ++k) sum += static_cast<double>(g[k]) * static_cast<double>(g[k]);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    norm_of_parts(StepNorm* norm, const double* parts, int64_t count, const StepTerms* terms) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += parts[i];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x != 0) return;
  const double found = sqrt(sum) / terms->times, measured = found + terms->clip_epsilon;
  const double clip = terms->clip_norm > 0 && measured > terms->clip_norm ? terms->clip_norm / measured : 1.0;
  norm->norm = found;
  norm->gradient_scale = static_cast<float>(clip / terms->times);
  norm->applies = std::isfinite(found) || terms->skips_not_finite == 0 ? 1 : 0;
}

void gradient_norm(DeviceStream stream, StepNorm* norm, double* workspace, const float* g, int64_t n,
                   const StepTerms* terms) {
  const int64_t wanted = ceil_div(n, kThreads * 4), blocks = wanted < 1 ? 1 : wanted;
  const auto parts = static_cast<unsigned>(blocks < kNormParts ? blocks : kNormParts);
  LAUNCH(squares_of_parts, parts, kThreads, 0, stream)(workspace, g, n);
  LAUNCH(norm_of_parts, 1u, kThreads, 0, stream)(norm, workspace, static_cast<int64_t>(parts), terms);
}

struct Update {
  StepTerms terms;
  float scale, decay;

  __device__ void apply(float& w, float& m, float& v, float g) const {
    float gradient = g * scale;
    if (terms.l2 != 0) gradient = fmaf(terms.l2, w, gradient);
    m = fmaf(terms.beta1, m, (1 - terms.beta1) * gradient);
    v = fmaf(terms.beta2, v, (1 - terms.beta2) * (gradient * gradient));
    w = fmaf(-terms.step, m / fmaf(sqrtf(v), terms.root, terms.epsilon), w * decay);
  }
};

__global__ void __launch_bounds__(kThreads)
    adamw_piece(float* weights, float* m, float* v, const float* g, bf16* copy, const AdamWPiece* pieces,
                const StepTerms* terms, const StepNorm* norm) {
  if (norm->applies == 0) return;
  const AdamWPiece piece = pieces[blockIdx.x];
  Update update{*terms, norm->gradient_scale, 1.0f - terms->lr * piece.weight_decay};
  for (int i = static_cast<int>(threadIdx.x) * 8; i < piece.count; i += kThreads * 8) {
    const int64_t at = piece.begin + i;
    if (at % 8 == 0 && i + 8 <= piece.count) {
      Vec8 rounded;
      UNROLL for (int part = 0; part < 2; ++part) {
        const int64_t k = at + part * 4;
        Vec4f wk = load4(weights + k), mk = load4(m + k), vk = load4(v + k);
        const Vec4f gk = load4(g + k);
        UNROLL for (int j = 0; j < 4; ++j) {
          update.apply(wk.v[j], mk.v[j], vk.v[j], gk.v[j]);
          rounded.v[part * 4 + j] = to_bf16(wk.v[j]);
        }
        store4(weights + k, wk), store4(m + k, mk), store4(v + k, vk);
      }
      if (copy != nullptr) store8(copy + at, rounded);
    } else {
      const int end = i + 8 < piece.count ? i + 8 : piece.count;
      for (int64_t k = at; k < piece.begin + end; ++k) {
        update.apply(weights[k], m[k], v[k], g[k]);
        if (copy != nullptr) copy[k] = to_bf16(weights[k]);
      }
    }
  }
}

void adamw(DeviceStream stream, float* weights, float* m, float* v, const float* g, bf16* copy,
           const AdamWPiece* pieces, int64_t count, const StepTerms* terms, const StepNorm* norm) {
  if (count == 0) return;
  LAUNCH(adamw_piece, static_cast<unsigned>(count), kThreads, 0, stream)
  (weights, m, v, g, copy, pieces, terms, norm);
}

}  // namespace

void add_adamw(DeviceTable& table) {
  table.gradient_norm = gradient_norm;
  table.adamw = adamw;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
