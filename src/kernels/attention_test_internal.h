// For tests of attention, on the CPU and on devices: the textbook in f64.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace flywheel::kernels {

struct AttentionCase {
  int64_t T, heads, kv_heads, head_dim, window;
  std::vector<int32_t> begins_T;  // position where each token's sample begins; empty: 0
};

struct AttentionReference {
  std::vector<double> out, lse_TH, dq, dk, dv;
};

// Softmax over materialised scores and its textbook gradient, for one sequence.
inline AttentionReference attention_reference(const std::vector<float>& q, const std::vector<float>& k,
                                              const std::vector<float>& v, const std::vector<float>& dout,
                                              const AttentionCase& c, double scale) {
  const int64_t H = c.heads, G = c.kv_heads, D = c.head_dim, T = c.T;
  const auto at = [&](const std::vector<float>& x, int64_t t, int64_t h, int64_t heads, int64_t d) {
    return static_cast<double>(x[static_cast<size_t>((t * heads + h) * D + d)]);
  };
  AttentionReference r;
  r.out.resize(q.size()), r.dq.resize(q.size()), r.dk.resize(k.size()), r.dv.resize(k.size());
  r.lse_TH.resize(static_cast<size_t>(T * H));
  for (int64_t h = 0; h < H; ++h) {
    const int64_t g = h / (H / G);
    for (int64_t t = 0; t < T; ++t) {
      const int64_t begin = c.begins_T.empty() ? 0 : c.begins_T[static_cast<size_t>(t)];
      const int64_t first = c.window > 0 ? std::max<int64_t>(begin, t - c.window + 1) : begin;
      std::vector<double> p;
      double total = 0, weighted = 0;
      for (int64_t j = first; j <= t; ++j) {
        double s = 0;
        for (int64_t d = 0; d < D; ++d) s += at(q, t, h, H, d) * at(k, j, g, G, d);
        p.push_back(std::exp(s * scale));
        total += p.back();
      }
      r.lse_TH[static_cast<size_t>(t * H + h)] = std::log(total);
      std::vector<double> dp(p.size());
      for (size_t i = 0; i < p.size(); ++i) {
        const auto j = first + static_cast<int64_t>(i);
        p[i] /= total;
        for (int64_t d = 0; d < D; ++d) {
          r.out[static_cast<size_t>((t * H + h) * D + d)] += p[i] * at(v, j, g, G, d);
          dp[i] += at(dout, t, h, H, d) * at(v, j, g, G, d);
        }
        weighted += p[i] * dp[i];
      }
      for (size_t i = 0; i < p.size(); ++i) {
        const auto j = first + static_cast<int64_t>(i);
        const double ds = p[i] * (dp[i] - weighted) * scale;
        for (int64_t d = 0; d < D; ++d) {
          r.dq[static_cast<size_t>((t * H + h) * D + d)] += ds * at(k, j, g, G, d);
          r.dk[static_cast<size_t>((j * G + g) * D + d)] += ds * at(q, t, h, H, d);
          r.dv[static_cast<size_t>((j * G + g) * D + d)] += p[i] * at(dout, t, h, H, d);
        }
      }
    }
  }
  return r;
}

}  // namespace flywheel::kernels
