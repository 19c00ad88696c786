#include "kernels/muon.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"

namespace flywheel::kernels {
namespace {

constexpr int64_t kPiece = 16384;

void transpose(float* y_KN, const float* x_NK, int64_t N, int64_t K, ThreadPool& pool) {
  pool.parallel_for(K, 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = begin; k < end; ++k) y_KN[k * N + n] = x_NK[n * K + k];
    }
  });
}

}  // namespace

void newton_schulz(float* x, int64_t N, int64_t K, int iterations, DType compute, ThreadPool& pool) {
  constexpr float a = 3.4445f, b = -4.7750f, c = 2.0315f;
  if (N > K) {  // the products with the smaller square
    std::vector<float> turned(static_cast<size_t>(N * K));
    transpose(turned.data(), x, N, K, pool);
    newton_schulz(turned.data(), K, N, iterations, compute, pool);
    transpose(x, turned.data(), K, N, pool);
    return;
  }
  const double norm = std::sqrt(sum_of_squares(x, N * K, pool));
  scale(x, static_cast<float>(1.0 / std::max(norm, 1e-7)), N * K, pool);
  std::vector<float> square(static_cast<size_t>(N * N)), mixed(square.size()),
      next(static_cast<size_t>(N * K));
  PackedWeight packed;
  for (int i = 0; i < iterations; ++i) {
    if (packed.empty()) {
      packed = PackedWeight::pack_from_f32(compute, x, N, K, pool);
    } else {
      packed.repack_from_f32(x, pool);
    }
    linear(square.data(), x, packed, N, pool);  // A = X X^T, symmetric
    const auto fill = [&](std::vector<float>& out, const float* in, float factor) {
      pool.parallel_for(std::ssize(out), kPiece, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) out[static_cast<size_t>(j)] = in[j] * factor;
      });
    };
    fill(mixed, square.data(), b / c);
    linear_backward_weight(mixed.data(), square.data(), square.data(), compute, N, N, N, pool);
    scale(mixed.data(), c, N * N, pool);  // b A + c A^2
    fill(next, x, a);
    linear_backward_weight(next.data(), mixed.data(), x, compute, N, N, K, pool);
    std::copy(next.begin(), next.end(), x);
  }
}

void muon(float* w, float* m, const float* g, int64_t N, int64_t K, const MuonStep& s, ThreadPool& pool) {
  CHECK(N > 0 && K > 0, "Muon on a matrix of {} x {}", N, K);
  std::vector<float> direction(static_cast<size_t>(N * K));
  pool.parallel_for(N * K, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float gradient = g[i] * s.gradient_scale;
      m[i] += (1 - s.momentum) * (gradient - m[i]);
      direction[static_cast<size_t>(i)] = s.nesterov ? gradient + s.momentum * (m[i] - gradient) : m[i];
    }
  });
  newton_schulz(direction.data(), N, K, s.iterations, s.compute, pool);
  const double ratio = static_cast<double>(N) / static_cast<double>(K);
  const double size = s.scale == MuonScale::kShape ? std::sqrt(std::max(1.0, ratio))
                                                   : 0.2 * std::sqrt(static_cast<double>(std::max(N, K)));
  const auto step = static_cast<float>(s.lr * size);
  const float decay = 1.0f - s.lr * s.weight_decay;
  pool.parallel_for(N * K, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) w[i] = w[i] * decay - step * direction[static_cast<size_t>(i)];
  });
}

}  // namespace flywheel::kernels
