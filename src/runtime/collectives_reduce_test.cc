// Every variant of the reduction against plain arithmetic in the order of the ranks.
#include "runtime/collectives_reduce.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/philox.h"

namespace flywheel::runtime {
namespace {

float from_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
float from_f16(uint16_t bits) {
  return static_cast<float>(std::bit_cast<_Float16>(bits));
}

// The two neighbours of `value` in the format are found by search over all 65,536 codes, once; the nearer one
// is right, and of two equally near the even one.
uint16_t nearest_16(double value, float (*decode)(uint16_t), int mantissa_bits) {
  if (std::isnan(value)) return 0x7FFF;
  const bool negative = std::signbit(value);
  const double magnitude = std::fabs(value);
  const uint16_t infinity = static_cast<uint16_t>(0x7FFF & ~((1 << mantissa_bits) - 1));
  uint16_t low = 0, high = infinity;  // codes of non-negative values are in order
  while (high - low > 1) {
    const auto middle = static_cast<uint16_t>((low + high) / 2);
    (decode(middle) <= magnitude ? low : high) = middle;
  }
  // Beyond the largest finite value, rounding goes on as if the next power of two were there.
  const double top =
      high == infinity ? 2.0 * decode(static_cast<uint16_t>(infinity - (1 << mantissa_bits))) : decode(high);
  const double below = magnitude - decode(low), above = top - magnitude;
  const uint16_t code = below < above || (below == above && low % 2 == 0) ? low : high;
  return static_cast<uint16_t>(code | (negative ? 0x8000 : 0));
}

template <typename T>
T plain(Reduce reduce, T a, T b) {
  if (reduce == Reduce::kSum) {
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) +
                            static_cast<std::make_unsigned_t<T>>(b));
    } else {
      return a + b;
    }
  }
  // NOLINTBEGIN(misc-redundant-expression): NaN, in types that std::isnan does not know
  if (a != a) return a;
  if (b != b) return b;
  // NOLINTEND(misc-redundant-expression)
  if (reduce == Reduce::kMax) return a > b ? a : b;
  return a < b ? a : b;
}

class ReduceInRankOrder : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > machine_isa()) GTEST_SKIP() << "this machine has no " << isa_name(GetParam());
  }
  // Reduces n arrays of random T (made by `random`) and hands each element's inputs and outputs to `check`.
  template <typename T>
  void run(Element element, uint64_t seed, const std::function<T(Philox&)>& random,
           const std::function<void(Reduce, const std::vector<T>&, T, const std::string&)>& check) {
    Philox rng(seed);
    for (const int n : {1, 2, 3, 5, 8}) {
      for (const int64_t count : {0, 1, 7, 16, 33, 257, 1031}) {
        std::vector<std::vector<T>> in(static_cast<size_t>(n), std::vector<T>(static_cast<size_t>(count)));
        for (auto& rank : in) std::generate(rank.begin(), rank.end(), [&] { return random(rng); });
        std::vector<const void*> pointers;
        for (auto& rank : in) pointers.push_back(rank.data());
        for (const Reduce reduce : {Reduce::kSum, Reduce::kMax, Reduce::kMin}) {
          std::vector<T> out(static_cast<size_t>(count) + 1, T{77}), also = out;
          reduce_in_rank_order(GetParam())(element, reduce, out.data(), also.data(), pointers.data(), n,
                                           count);
          ASSERT_EQ(out.back(), T{77}) << "wrote past the end";
          ASSERT_EQ(0, std::memcmp(out.data(), also.data(), out.size() * sizeof(T)));
          for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
            std::vector<T> column;
            for (auto& rank : in) column.push_back(rank[i]);
            check(reduce, column, out[i],
                  fmt::format("{} of {} ranks, element {} of {}", static_cast<int>(reduce), n, i, count));
            if (HasFatalFailure()) return;
          }
        }
        if (count > 0) {  // in place: out is one of the inputs
          std::vector<T> expected(static_cast<size_t>(count));
          const auto fn = reduce_in_rank_order(GetParam());
          fn(element, Reduce::kSum, expected.data(), nullptr, pointers.data(), n, count);
          fn(element, Reduce::kSum, in.back().data(), nullptr, pointers.data(), n, count);
          ASSERT_EQ(0, std::memcmp(expected.data(), in.back().data(), expected.size() * sizeof(T)));
        }
      }
    }
  }
};

TEST_P(ReduceInRankOrder, F32IsSummedFromTheLeft) {
  run<float>(
      Element::kF32, 11,
      [](Philox& rng) {
        if (rng.below(50) == 0) return std::numeric_limits<float>::quiet_NaN();
        return rng.normal() * std::ldexp(1.0f, static_cast<int>(rng.below(40)) - 20);
      },
      [](Reduce reduce, const std::vector<float>& in, float out, const std::string& what) {
        float expected = in[0];
        for (size_t r = 1; r < in.size(); ++r) expected = plain(reduce, expected, in[r]);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(out)) << what;
        } else {
          ASSERT_EQ(std::bit_cast<uint32_t>(out), std::bit_cast<uint32_t>(expected)) << what;
        }
      });
}

TEST_P(ReduceInRankOrder, SixteenBitFloatsAreRoundedOnce) {
  for (const Element element : {Element::kBF16, Element::kF16}) {
    const bool bf16 = element == Element::kBF16;
    const auto decode = bf16 ? from_bf16 : from_f16;
    run<uint16_t>(
        element, bf16 ? 12 : 13,
        [&](Philox& rng) {
          const auto bits = static_cast<uint16_t>(rng.next_u32());  // every code: denormals, infinities, NaN
          return rng.below(4) == 0 ? bits : nearest_16(rng.normal(), decode, bf16 ? 7 : 10);
        },
        [&](Reduce reduce, const std::vector<uint16_t>& in, uint16_t out, const std::string& what) {
          float expected = decode(in[0]);
          for (size_t r = 1; r < in.size(); ++r) expected = plain(reduce, expected, decode(in[r]));
          if (std::isnan(expected)) {
            ASSERT_TRUE(std::isnan(decode(out))) << what;
          } else {
            ASSERT_EQ(out, nearest_16(expected, decode, bf16 ? 7 : 10))
                << element_name(element) << " " << what;
          }
        });
  }
}

template <typename T>
void check_integers(Reduce reduce, const std::vector<T>& in, T out, const std::string& what) {
  T expected = in[0];
  for (size_t r = 1; r < in.size(); ++r) expected = plain(reduce, expected, in[r]);
  ASSERT_EQ(out, expected) << what;
}

TEST_P(ReduceInRankOrder, IntegersWrap) {
  run<int32_t>(
      Element::kI32, 14, [](Philox& rng) { return static_cast<int32_t>(rng.next_u32()); },
      check_integers<int32_t>);
  run<int64_t>(
      Element::kI64, 15, [](Philox& rng) { return static_cast<int64_t>(rng.next_u64()); },
      check_integers<int64_t>);
}

INSTANTIATE_TEST_SUITE_P(Variants, ReduceInRankOrder,
                         ::testing::Values(Isa::kBaseline, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

}  // namespace
}  // namespace flywheel::runtime
