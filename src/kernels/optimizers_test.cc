// Each optimizer for several steps against its formula in f64, on every instruction set.
#include <functional>

#include "kernels/adafactor.h"
#include "kernels/adamw.h"
#include "kernels/adamw_8bit.h"
#include "kernels/elementwise.h"
#include "kernels/lion.h"
#include "kernels/muon.h"
#include "kernels/random_test_internal.h"
#include "kernels/sgd.h"

namespace flywheel::kernels {
namespace {

using Values = std::vector<double>;

TEST(Adam, L2DecayAgreesWithF64) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    RandomInput random;
    const int64_t n = random.integer(1, 20000);
    auto w = random.normal(n), m = std::vector<float>(w.size()), v = m;
    Values want = widen(w), wm = widen(m), wv = wm;
    for (int64_t t = 1; t <= 5; ++t) {
      const auto g = random.normal(n);
      adamw(w.data(), m.data(), v.data(), g.data(), nullptr, n,
            {.lr = 1e-2f, .beta2 = 0.999f, .t = t, .gradient_scale = 0.5f, .l2 = 0.1f}, pool);
      for (size_t i = 0; i < want.size(); ++i) {
        const double b1 = 0.9f, b2 = 0.999f, gradient = g[i] * 0.5 + 0.1f * want[i];
        wm[i] = b1 * wm[i] + (1 - b1) * gradient;
        wv[i] = b2 * wv[i] + (1 - b2) * gradient * gradient;
        const auto step = static_cast<double>(t);
        want[i] -=
            1e-2f * wm[i] / (1 - std::pow(b1, step)) / (std::sqrt(wv[i] / (1 - std::pow(b2, step))) + 1e-8f);
      }
    }
    EXPECT_LT(worst_error(w, want), 2e-5);
  }
}

TEST(Sgd, EveryFormAgreesWithF64) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    for (int form = 0; form < 5; ++form) {
      RandomInput random;
      const int64_t n = random.integer(1, 20000);
      const SgdStep base{.lr = 0.1f,
                         .momentum = form == 0 ? 0.0f : 0.9f,
                         .dampening = form == 2 ? 0.3f : 0.0f,
                         .nesterov = form == 3,
                         .weight_decay = form == 4 ? 0.2f : 0.0f,
                         .l2 = form < 4 ? 0.05f : 0.0f,
                         .gradient_scale = 0.25f};
      auto w = random.normal(n), buffer = random.normal(n);  // the first step forgets what was there
      Values want = widen(w), moment = widen(buffer);
      for (int64_t t = 1; t <= 4; ++t) {
        const auto g = random.normal(n);
        SgdStep step = base;
        step.t = t;
        sgd(w.data(), form == 0 ? nullptr : buffer.data(), g.data(), n, step, pool);
        for (size_t i = 0; i < want.size(); ++i) {
          const double mu = base.momentum, gradient = g[i] * 0.25 + base.l2 * want[i];
          moment[i] = t == 1 ? gradient : mu * moment[i] + (1.0 - base.dampening) * gradient;
          const double change = mu == 0 ? gradient : base.nesterov ? gradient + mu * moment[i] : moment[i];
          want[i] = want[i] * (1 - 0.1f * base.weight_decay) - 0.1f * change;
        }
      }
      EXPECT_LT(worst_error(w, want), 2e-6) << "form " << form;
    }
  }
}

TEST(Lion, AgreesWithF64) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    RandomInput random;
    const int64_t n = random.integer(1, 20000);
    auto w = random.normal(n), m = std::vector<float>(w.size());
    Values want = widen(w);
    for (int64_t t = 1; t <= 4; ++t) {
      auto g = random.normal(n);
      g[0] = 0;  // no sign, no step
      const auto before = m;
      lion(w.data(), m.data(), g.data(), n, {.lr = 1e-2f, .weight_decay = 0.1f, .gradient_scale = 0.5f},
           pool);
      for (size_t i = 0; i < want.size(); ++i) {
        const double gradient = g[i] * 0.5, mixed = 0.9f * before[i] + (1 - 0.9f) * gradient;
        if (std::abs(mixed) < 1e-6 && mixed != 0) {  // too near to 0 for a sign in f32
          want[i] = w[i];
          continue;
        }
        want[i] = want[i] * (1 - 1e-2f * 0.1f) - (mixed > 0 ? 1e-2f : mixed < 0 ? -1e-2f : 0.0);
        ASSERT_NEAR(m[i], 0.99f * before[i] + (1 - 0.99f) * gradient, 1e-6);
      }
    }
    EXPECT_LT(worst_error(w, want), 2e-6);
  }
}

double rms(const Values& x) {
  double squares = 0;
  for (const double v : x) squares += v * v;
  return std::sqrt(squares / static_cast<double>(x.size()));
}

// The whole step in f64; a vector where rows is empty (second takes all of it then).
void adafactor_f64(Values& w, Values& rows, Values& second, Values& m, const std::vector<float>& g, size_t K,
                   const AdafactorStep& s) {
  const auto t = static_cast<double>(s.t);
  const double beta2 = 1 - std::pow(t, static_cast<double>(s.decay_rate));
  double rate = s.relative_step ? std::min<double>(s.lr, 1 / std::sqrt(t)) : s.lr;
  if (s.scale_parameter) rate *= std::max<double>(s.epsilon2, rms(w));
  Values u(w.size());
  for (size_t i = 0; i < u.size(); ++i) u[i] = static_cast<double>(g[i]) * s.gradient_scale;
  if (rows.empty()) {
    for (size_t i = 0; i < u.size(); ++i) {
      second[i] = beta2 * second[i] + (1 - beta2) * (u[i] * u[i] + s.epsilon1);
      u[i] /= std::sqrt(second[i]);
    }
  } else {
    const size_t N = rows.size();
    Values row(N), column(K);
    for (size_t i = 0; i < u.size(); ++i) {
      row[i / K] += u[i] * u[i] / static_cast<double>(K);
      column[i % K] += u[i] * u[i] / static_cast<double>(N);
    }
    double mean = 0;
    for (size_t n = 0; n < N; ++n) {
      rows[n] = beta2 * rows[n] + (1 - beta2) * (row[n] + s.epsilon1);
      mean += rows[n] / static_cast<double>(N);
    }
    for (size_t k = 0; k < K; ++k) second[k] = beta2 * second[k] + (1 - beta2) * (column[k] + s.epsilon1);
    for (size_t i = 0; i < u.size(); ++i) u[i] /= std::sqrt(rows[i / K] * second[i % K] / mean);
  }
  const double clip = std::max(1.0, rms(u) / s.clip_threshold);
  for (size_t i = 0; i < u.size(); ++i) {
    double change = rate * u[i] / clip;
    if (s.beta1 != 0) change = m[i] = s.beta1 * m[i] + (1.0 - s.beta1) * change;
    w[i] = w[i] * (1 - static_cast<double>(s.lr) * s.weight_decay) - change;
  }
}

TEST(Adafactor, AgreesWithF64) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    for (int form = 0; form < 4; ++form) {
      RandomInput random;
      const int64_t N = form == 3 ? 1 : random.integer(1, 150), K = random.integer(1, 300);
      const size_t size = static_cast<size_t>(N * K), columns = static_cast<size_t>(form == 3 ? size : K);
      auto w = random.normal(N * K), m = std::vector<float>(size);
      std::vector<float> rows(static_cast<size_t>(N)), second(columns);
      Values want = widen(w), wrows(form == 3 ? 0 : rows.size()), wsecond(columns), wm(size);
      for (int64_t t = 1; t <= 5; ++t) {
        const auto g = random.normal(N * K);
        const AdafactorStep step{.lr = 1e-2f,
                                 .scale_parameter = form != 1,
                                 .relative_step = form == 2,
                                 .beta1 = form == 2 ? 0.9f : 0.0f,
                                 .weight_decay = 0.1f,
                                 .t = t,
                                 .gradient_scale = 0.5f};
        if (form == 3) {
          adafactor_vector(w.data(), second.data(), m.data(), g.data(), K, step, pool);
        } else {
          adafactor_matrix(w.data(), rows.data(), second.data(), m.data(), g.data(), N, K, step, pool);
        }
        adafactor_f64(want, wrows, wsecond, wm, g, static_cast<size_t>(K), step);
      }
      EXPECT_LT(worst_error(w, want), 1e-5) << "form " << form << ", " << N << " x " << K;
    }
  }
}

TEST(Adafactor, BitsDoNotDependOnThreads) {
  RandomInput random;
  const int64_t N = 333, K = 257;
  const auto w = random.normal(N * K), g = random.normal(N * K);
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    auto mine = w;
    std::vector<float> rows(static_cast<size_t>(N)), columns(static_cast<size_t>(K));
    adafactor_matrix(mine.data(), rows.data(), columns.data(), nullptr, g.data(), N, K, {.lr = 0.1f}, pool);
    results.push_back(mine);
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

Values newton_schulz_f64(const std::vector<float>& x, size_t N, size_t K, int iterations) {
  Values X = widen(x);
  double norm = 0;
  for (const double v : X) norm += v * v;
  for (double& v : X) v /= std::max(std::sqrt(norm), 1e-7);
  const double a = 3.4445f, b = -4.7750f, c = 2.0315f;
  for (int i = 0; i < iterations; ++i) {  // (a + b X X^T + c (X X^T)^2) X, whatever the shape
    Values A(N * N), B(N * N), next(N * K);
    for (size_t p = 0; p < N; ++p)
      for (size_t q = 0; q < N; ++q)
        for (size_t k = 0; k < K; ++k) A[p * N + q] += X[p * K + k] * X[q * K + k];
    for (size_t p = 0; p < N; ++p)
      for (size_t q = 0; q < N; ++q) {
        B[p * N + q] = b * A[p * N + q];
        for (size_t r = 0; r < N; ++r) B[p * N + q] += c * A[p * N + r] * A[r * N + q];
      }
    for (size_t p = 0; p < N; ++p)
      for (size_t k = 0; k < K; ++k) {
        next[p * K + k] = a * X[p * K + k];
        for (size_t q = 0; q < N; ++q) next[p * K + k] += B[p * N + q] * X[q * K + k];
      }
    X = next;
  }
  return X;
}

TEST(Muon, NewtonSchulzAgreesWithF64) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    for (int shape = 0; shape < 3; ++shape) {
      RandomInput random;
      const int64_t N = shape == 0 ? 1 : random.integer(2, 70), K = shape == 1 ? 1 : random.integer(2, 70);
      const auto x = random.normal(N * K);
      const Values want = newton_schulz_f64(x, static_cast<size_t>(N), static_cast<size_t>(K), 5);
      auto exact = x, rounded = x;
      newton_schulz(exact.data(), N, K, 5, DType::kF32, pool);
      newton_schulz(rounded.data(), N, K, 5, DType::kBF16, pool);
      EXPECT_LT(worst_error(exact, want), 5e-4) << N << " x " << K;
      EXPECT_LT(worst_error(rounded, want), 0.5) << N << " x " << K;
      double squares = 0;  // its singular values are near 1
      for (const float v : exact) squares += static_cast<double>(v) * v;
      const double mean = squares / static_cast<double>(std::min(N, K));
      EXPECT_GT(mean, 0.4);
      EXPECT_LT(mean, 1.5);
    }
  }
}

TEST(Muon, StepAgreesWithF64) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    for (const bool nesterov : {false, true}) {
      for (const MuonScale scale : {MuonScale::kShape, MuonScale::kLikeAdamW}) {
        RandomInput random;
        const int64_t N = random.integer(2, 50), K = random.integer(2, 50);
        auto w = random.normal(N * K), m = std::vector<float>(w.size());
        Values want = widen(w), wm(w.size());
        for (int64_t t = 1; t <= 3; ++t) {
          const auto g = random.normal(N * K);
          muon(w.data(), m.data(), g.data(), N, K,
               {.lr = 0.02f,
                .weight_decay = 0.1f,
                .nesterov = nesterov,
                .scale = scale,
                .compute = DType::kF32,
                .gradient_scale = 3.0f},
               pool);
          std::vector<float> direction(w.size());
          for (size_t i = 0; i < wm.size(); ++i) {
            const double gradient = 3.0 * g[i], mu = 0.95f;
            wm[i] = mu * wm[i] + (1 - mu) * gradient;
            direction[i] = static_cast<float>(nesterov ? mu * wm[i] + (1 - mu) * gradient : wm[i]);
          }
          const Values o = newton_schulz_f64(direction, static_cast<size_t>(N), static_cast<size_t>(K), 5);
          const auto rows = static_cast<double>(N), columns = static_cast<double>(K);
          const double size = scale == MuonScale::kShape ? std::sqrt(std::max(1.0, rows / columns))
                                                         : 0.2 * std::sqrt(std::max(rows, columns));
          for (size_t i = 0; i < want.size(); ++i)
            want[i] = want[i] * (1 - 0.02f * 0.1f) - 0.02f * size * o[i];
        }
        EXPECT_LT(worst_error(w, want), 1e-4);
      }
    }
  }
}

TEST(AdamW8Bit, EveryValueGoesToTheNearestCode) {
  RandomInput random;
  for (const DynamicCode kind : {DynamicCode::kSigned, DynamicCode::kUnsigned}) {
    const auto& values = dynamic_values(kind);
    EXPECT_TRUE(std::ranges::is_sorted(values));
    std::vector<float> inputs(values.begin(), values.end());
    for (size_t c = 0; c + 1 < 256; ++c) {
      const float middle = (values[c] + values[c + 1]) / 2;
      inputs.insert(inputs.end(), {middle, std::nextafter(middle, -2.0f), std::nextafter(middle, 2.0f)});
    }
    for (int i = 0; i < 100000; ++i) {
      const float x = random.normal(1)[0] * std::pow(10.0f, static_cast<float>(random.integer(-9, 0)));
      inputs.push_back(std::clamp(x, -1.0f, 1.0f));
    }
    for (float x : inputs) {
      if (kind == DynamicCode::kUnsigned) x = std::abs(x);
      const uint8_t code = dynamic_code(kind, x);
      float nearest = 2;
      for (const float value : values) nearest = std::min(nearest, std::abs(value - x));
      ASSERT_LE(std::abs(values[code] - x), nearest + 1.2e-7f * std::abs(x))
          << x;  // the middle is an f32 too
    }
  }
}

// The same moments, quantized and back, beside the kernel.
TEST(AdamW8Bit, StepsAgreeWithF64MomentsOfTheSameCodes) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    RandomInput random;
    const int64_t n = random.integer(1, 5000), blocks = (n + kAdamWBlock - 1) / kAdamWBlock;
    auto w = random.normal(n);
    std::vector<uint8_t> m(w.size()), v(w.size());
    std::vector<float> ms(static_cast<size_t>(blocks)), vs(ms.size());
    Values want = widen(w);
    const auto value = [&](const std::vector<uint8_t>& codes, const std::vector<float>& scales,
                           DynamicCode kind, size_t i) {
      return static_cast<double>(dynamic_values(kind)[codes[i]]) * scales[i / kAdamWBlock];
    };
    for (int64_t t = 1; t <= 6; ++t) {
      const auto g = random.normal(n);
      Values first(w.size()), second(w.size());
      for (size_t i = 0; i < w.size(); ++i) {
        const double b1 = 0.9f, b2 = 0.95f, gradient = g[i];
        first[i] = b1 * value(m, ms, DynamicCode::kSigned, i) + (1 - b1) * gradient;
        second[i] = b2 * value(v, vs, DynamicCode::kUnsigned, i) + (1 - b2) * gradient * gradient;
        const auto step = static_cast<double>(t);
        want[i] =
            want[i] * (1 - 1e-2f * 0.1f) - 1e-2f * first[i] / (1 - std::pow(b1, step)) /
                                               (std::sqrt(second[i] / (1 - std::pow(b2, step))) + 1e-8f);
      }
      adamw_8bit(w.data(), m.data(), ms.data(), v.data(), vs.data(), g.data(), n,
                 {.lr = 1e-2f, .weight_decay = 0.1f, .t = t}, pool);
      for (size_t i = 0; i < w.size(); ++i) {  // what is kept is near: codes are at most 10 % apart
        ASSERT_NEAR(value(m, ms, DynamicCode::kSigned, i), first[i],
                    0.05 * std::abs(first[i]) + 1e-6 * ms[i / kAdamWBlock] + 0.008 * ms[i / kAdamWBlock]);
        ASSERT_NEAR(value(v, vs, DynamicCode::kUnsigned, i), second[i],
                    0.05 * second[i] + 1e-6 * vs[i / kAdamWBlock] + 0.004 * vs[i / kAdamWBlock]);
      }
    }
    EXPECT_LT(worst_error(w, want), 1e-5);
  }
}

// 8 bits reach nearly where 32 do: 300 steps on a quadratic.
TEST(AdamW8Bit, FindsTheMinimumOfAQuadratic) {
  ThreadPool pool(2);
  RandomInput random;
  const int64_t n = 4096;
  const auto goal = random.normal(n);
  std::vector<float> w(goal.size()), g(goal.size()), scales(n / kAdamWBlock), second_scales(scales);
  std::vector<uint8_t> m(goal.size()), v(goal.size());
  for (int64_t t = 1; t <= 300; ++t) {
    for (size_t i = 0; i < g.size(); ++i) g[i] = w[i] - goal[i];
    const float lr = 0.05f * (1 - static_cast<float>(t) / 300);
    adamw_8bit(w.data(), m.data(), scales.data(), v.data(), second_scales.data(), g.data(), n,
               {.lr = lr, .t = t}, pool);
  }
  EXPECT_LT(worst_error(w, widen(goal)), 0.05);
}

TEST(Lerp, AgreesWithF64) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    RandomInput random;
    const int64_t n = random.integer(1, 20000);
    auto y = random.normal(n);
    const auto x = random.normal(n);
    Values want = widen(y);
    for (size_t i = 0; i < want.size(); ++i) want[i] += 0.01f * (x[i] - want[i]);
    lerp(y.data(), x.data(), 0.01f, n, pool);
    EXPECT_LT(worst_error(y, want), 1e-6);
  }
}

}  // namespace
}  // namespace flywheel::kernels
