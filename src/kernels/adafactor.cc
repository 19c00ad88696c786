#include "kernels/adafactor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/elementwise.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {
namespace {

constexpr int64_t kRowsOfPartial = 64;  // rows whose columns are summed apart, then added in order
constexpr int64_t kPiece = 16384;

double rms_of(const float* x, int64_t n, ThreadPool& pool) {
  return std::sqrt(sum_of_squares(x, n, pool) / static_cast<double>(n));
}

float beta2_of(const AdafactorStep& s) {
  CHECK(s.t >= 1, "Adafactor step {}: steps count from 1", s.t);
  return static_cast<float>(1.0 - std::pow(static_cast<double>(s.t), static_cast<double>(s.decay_rate)));
}

float rate_of(const AdafactorStep& s, const float* w, int64_t n, ThreadPool& pool) {
  double rate = s.lr;
  if (s.relative_step) rate = std::min(rate, 1.0 / std::sqrt(static_cast<double>(s.t)));
  if (s.scale_parameter) rate *= std::max(static_cast<double>(s.epsilon2), rms_of(w, n, pool));
  return static_cast<float>(rate);
}

// What the clipped update is multiplied by.
float clipped(float rate, double squares, int64_t n, const AdafactorStep& s) {
  const double rms = std::sqrt(squares / static_cast<double>(n));
  return static_cast<float>(rate / std::max(1.0, rms / static_cast<double>(s.clip_threshold)));
}

// R and C of this step.
void second_moments(float* rows, float* columns, const float* g, int64_t N, int64_t K, const AdafactorStep& s,
                    ThreadPool& pool) {
  const float beta2 = beta2_of(s);
  const Table& kernels = table();
  const int64_t pieces = (N + kRowsOfPartial - 1) / kRowsOfPartial;
  std::vector<float> partial(static_cast<size_t>(pieces * K), 0.0f);
  pool.parallel_for(N, kRowsOfPartial, [&](int64_t begin, int64_t end) {
    float* sums = partial.data() + begin / kRowsOfPartial * K;
    for (int64_t n = begin; n < end; ++n) {
      const float mean = kernels.square_row(sums, g + n * K, s.gradient_scale, K) / static_cast<float>(K);
      rows[n] = beta2 * rows[n] + (1 - beta2) * (mean + s.epsilon1);
    }
  });
  for (int64_t piece = 1; piece < pieces; ++piece)
    kernels.add(partial.data(), partial.data(), partial.data() + piece * K, K);
  for (int64_t k = 0; k < K; ++k) {
    const float mean = partial[static_cast<size_t>(k)] / static_cast<float>(N);
    columns[k] = beta2 * columns[k] + (1 - beta2) * (mean + s.epsilon1);
  }
}

}  // namespace

void adafactor_matrix(float* w, float* rows, float* columns, float* m, const float* g, int64_t N, int64_t K,
                      const AdafactorStep& s, ThreadPool& pool) {
  CHECK(m != nullptr || s.beta1 == 0, "Adafactor with beta1 needs a first moment");
  const float rate = rate_of(s, w, N * K, pool);
  second_moments(rows, columns, g, N, K, s, pool);
  double mean_row = 0;
  for (int64_t n = 0; n < N; ++n) mean_row += rows[n];
  mean_row /= static_cast<double>(N);
  // u[n][k] = g[n][k] * row[n] * column[k]
  std::vector<float> row(static_cast<size_t>(N)), column(static_cast<size_t>(K));
  for (size_t n = 0; n < row.size(); ++n)
    row[n] = static_cast<float>(std::sqrt(mean_row / static_cast<double>(rows[n])) * s.gradient_scale);
  for (size_t k = 0; k < column.size(); ++k) column[k] = 1.0f / std::sqrt(columns[k]);

  const Table& kernels = table();
  const int64_t grain = std::max<int64_t>(1, kPiece / K);
  const double squares = pool.parallel_sum(N, grain, [&](int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t n = begin; n < end; ++n) {
      const double r = row[static_cast<size_t>(n)];
      sum += kernels.sum_of_squared_products(g + n * K, column.data(), K) * r * r;
    }
    return sum;
  });
  const float step = clipped(rate, squares, N * K, s), decay = 1.0f - s.lr * s.weight_decay;
  pool.parallel_for(N, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float factor = step * row[static_cast<size_t>(n)];
      if (s.beta1 == 0) {
        kernels.scaled_update(w + n * K, g + n * K, column.data(), factor, decay, K);
        continue;
      }
      for (int64_t i = n * K; i < (n + 1) * K; ++i) {
        m[i] = s.beta1 * m[i] + (1 - s.beta1) * factor * g[i] * column[static_cast<size_t>(i - n * K)];
        w[i] = w[i] * decay - m[i];
      }
    }
  });
}

void adafactor_vector(float* w, float* second, float* m, const float* g, int64_t n, const AdafactorStep& s,
                      ThreadPool& pool) {
  CHECK(m != nullptr || s.beta1 == 0, "Adafactor with beta1 needs a first moment");
  const float rate = rate_of(s, w, n, pool), beta2 = beta2_of(s);
  std::vector<float> update(static_cast<size_t>(n));
  pool.parallel_for(n, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float gradient = g[i] * s.gradient_scale;
      second[i] = beta2 * second[i] + (1 - beta2) * (gradient * gradient + s.epsilon1);
      update[static_cast<size_t>(i)] = gradient / std::sqrt(second[i]);
    }
  });
  const float step = clipped(rate, sum_of_squares(update.data(), n, pool), n, s);
  const float decay = 1.0f - s.lr * s.weight_decay;
  pool.parallel_for(n, kPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float change = step * update[static_cast<size_t>(i)];
      if (s.beta1 != 0) change = m[i] = s.beta1 * m[i] + (1 - s.beta1) * change;
      w[i] = w[i] * decay - change;
    }
  });
}

}  // namespace flywheel::kernels
