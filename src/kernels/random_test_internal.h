// For tests of kernels: fresh random input (its seed is printed with a failure) and comparison with f64.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "base/philox.h"
#include "kernels/dtype.h"
#include "kernels/variant.h"

namespace flywheel::kernels {

class RandomInput {
 public:
  RandomInput()
      : seed_(std::random_device{}()),
        rng_(seed_),
        trace_(__FILE__, __LINE__, ::testing::Message() << "seed " << seed_) {}
  std::vector<float> normal(int64_t n, float scale = 1.0f) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = rng_.normal() * scale;
    return v;
  }
  // In [low, high].
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(rng_.below(static_cast<uint64_t>(high - low + 1)));
  }

 private:
  uint32_t seed_;
  Philox rng_;
  ::testing::ScopedTrace trace_;
};

inline std::vector<double> widen(const std::vector<float>& v) {
  return {v.begin(), v.end()};
}

inline std::vector<float> rounded(std::vector<float> v, DType dtype) {
  for (float& x : v) {
    if (dtype == DType::kBF16) x = from_bf16(to_bf16(x));
    if (dtype == DType::kF16) x = from_f16(to_f16(x));
  }
  return v;
}

// Largest |got - want|; infinity for results of another number, or where one of them is not finite: no bound
// is above that.
inline double largest_difference(const std::vector<float>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return HUGE_VAL;
  double largest = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!std::isfinite(difference)) return HUGE_VAL;
    largest = std::max(largest, difference);
  }
  return largest;
}

// The same over the root mean square of want.
inline double worst_error(const std::vector<float>& got, const std::vector<double>& want) {
  double squares = 0;
  for (const double x : want) squares += x * x;
  return largest_difference(got, want) / (std::sqrt(squares / static_cast<double>(want.size())) + 1e-30);
}

// Over the largest |want|, for results that are nearly zero but for a few.
inline double worst_error_of_largest(const std::vector<float>& got, const std::vector<double>& want) {
  double largest = 1e-30;
  for (const double x : want) largest = std::max(largest, std::abs(x));
  return largest_difference(got, want) / largest;
}

#define FOR_EACH_ISA                          \
  for (const Isa test_isa : machine_isas())   \
    if (ScopedIsa scoped_isa(test_isa); true) \
      if (::testing::ScopedTrace isa_trace(__FILE__, __LINE__, isa_name(test_isa)); true)

}  // namespace flywheel::kernels
