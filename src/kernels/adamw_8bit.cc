#include "kernels/adamw_8bit.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/elementwise_internal.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {
namespace {

// Seven decades from 1e-6 to 1, each cut into means of equal steps, twice as many in each as in the one
// below; then 0 and 1.
std::array<float, 256> make_values(DynamicCode code) {
  std::vector<float> values = {0.0f, 1.0f};
  for (int decade = 0; decade < 7; ++decade) {
    const int steps = code == DynamicCode::kSigned ? 1 << decade : 2 << decade;
    const double power = std::pow(10.0, decade - 6);
    for (int i = 0; i < steps; ++i) {
      const double low = 0.1 + 0.9 * i / steps, high = 0.1 + 0.9 * (i + 1) / steps;
      const auto mean = static_cast<float>(power * (low + high) / 2);
      values.push_back(mean);
      if (code == DynamicCode::kSigned) values.push_back(-mean);
    }
  }
  std::ranges::sort(values);
  std::array<float, 256> out;
  std::ranges::copy(values, out.begin());
  return out;
}

// Finds the nearest code by the value's exponent and first fraction bits, then by a step or two.
struct CodeBook {
  static constexpr int kFractionBits = 6, kShift = 23 - kFractionBits, kExponents = 25;
  static constexpr uint32_t kLowest = (127u - 24) << kFractionBits;  // 2^-24, far below the least code
  static constexpr size_t kBins = static_cast<size_t>(kExponents) << kFractionBits;

  explicit CodeBook(DynamicCode code) : values(make_values(code)) {
    for (size_t c = 0; c < 255; ++c) middle[c] = (values[c] + values[c + 1]) / 2;
    middle[255] = INFINITY;
    for (size_t bin = 0; bin < kBins; ++bin) {
      const auto edge = [&](size_t b) { return float_of((kLowest + static_cast<uint32_t>(b)) << kShift); };
      start[0][bin] = search(bin == 0 ? 0.0f : edge(bin));
      start[1][bin] = search(-edge(bin + 1));
    }
  }
  uint8_t search(float value) const {
    uint8_t c = 0;
    while (value > middle[c]) ++c;
    return c;
  }
  uint8_t operator()(float value) const {
    const uint32_t bits = bits_of(value), key = (bits & 0x7fffffff) >> kShift;
    const size_t bin = std::min<size_t>(key < kLowest ? 0 : key - kLowest, kBins - 1);
    uint8_t c = start[bits >> 31][bin];
    while (value > middle[c]) ++c;
    return c;
  }

  std::array<float, 256> values;
  std::array<float, 256> middle;  // between a code and the next
  std::array<std::array<uint8_t, kBins>, 2> start;
};

const CodeBook& book(DynamicCode code) {
  static const CodeBook kBooks[] = {CodeBook(DynamicCode::kSigned), CodeBook(DynamicCode::kUnsigned)};
  return kBooks[static_cast<size_t>(code)];
}

void widen(float* out, const uint8_t* codes, float scale, int64_t n, const CodeBook& from) {
  for (int64_t i = 0; i < n; ++i) out[i] = from.values[codes[i]] * scale;
}

float narrow(uint8_t* codes, const float* in, int64_t n, const CodeBook& to) {
  const float scale = table().largest_magnitude(in, n);
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  // The inverse of a scale below 2^-126 is no number of f32: such moments are nothing.
  for (int64_t i = 0; i < n; ++i) codes[i] = to(std::isinf(inverse) ? 0.0f : in[i] * inverse);
  return scale;
}

}  // namespace

const std::array<float, 256>& dynamic_values(DynamicCode code) {
  return book(code).values;
}

uint8_t dynamic_code(DynamicCode code, float value) {
  return book(code)(value);
}

void adamw_8bit(float* weights, uint8_t* m, float* m_scales, uint8_t* v, float* v_scales,
                const float* gradients, int64_t n, const AdamWStep& step, ThreadPool& pool) {
  const AdamWTerms terms = adamw_terms(step);
  const auto piece = table().adamw;
  const CodeBook &first_book = book(DynamicCode::kSigned), &second_book = book(DynamicCode::kUnsigned);
  const int64_t blocks = (n + kAdamWBlock - 1) / kAdamWBlock;
  pool.parallel_for(blocks, 64, [&](int64_t begin, int64_t end) {
    alignas(64) float first[kAdamWBlock], second[kAdamWBlock];
    for (int64_t b = begin; b < end; ++b) {
      const int64_t at = b * kAdamWBlock, count = std::min(kAdamWBlock, n - at);
      widen(first, m + at, m_scales[b], count, first_book);
      widen(second, v + at, v_scales[b], count, second_book);
      piece(weights + at, first, second, gradients + at, nullptr, count, terms);
      m_scales[b] = narrow(m + at, first, count, first_book);
      v_scales[b] = narrow(v + at, second, count, second_book);
    }
  });
}

}  // namespace flywheel::kernels
