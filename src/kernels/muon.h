// Muon (Jordan et al. 2024): the momentum of a hidden matrix [N, K], made nearly orthogonal by Newton-Schulz
// steps, is the update. For matrices between hidden values only: embeddings, output matrix, norms and biases
// are given to AdamW.
//
//   m = momentum * m + (1 - momentum) * g         d = nesterov ? momentum * m + (1 - momentum) * g : m
//   O = newton_schulz(d)                          w = w * (1 - lr * weight_decay) - lr * scale * O
//
// scale is sqrt(max(1, N / K)) (Jordan), or 0.2 sqrt(max(N, K)), which gives updates the size of AdamW's, so
// that its learning rate and decay serve for both (Liu et al., Moonlight, 2025).
// Needs whole matrices.
//
//   muon(w_NK, m_NK, gradients_NK, N, K, {.lr = 0.02f}, pool);
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/dtype.h"

namespace flywheel::kernels {

enum class MuonScale { kShape, kLikeAdamW };

struct MuonStep {
  float lr;
  float momentum = 0.95f, weight_decay = 0.0f;
  bool nesterov = true;
  MuonScale scale = MuonScale::kShape;
  int iterations = 5;
  DType compute = DType::kBF16;  // of the products; f32 for exactness
  float gradient_scale = 1.0f;
};

void muon(float* w_NK, float* m_NK, const float* gradients_NK, int64_t N, int64_t K, const MuonStep& step,
          ThreadPool& pool);

// x_NK becomes U S' V^T of its singular value decomposition U S V^T, each of S' about 0.7 to 1.2:
// `iterations` of X = a X + (b A + c A^2) X with A = X X^T, from X / |X|. The coefficients are Jordan's.
void newton_schulz(float* x_NK, int64_t N, int64_t K, int iterations, DType compute, ThreadPool& pool);

}  // namespace flywheel::kernels
