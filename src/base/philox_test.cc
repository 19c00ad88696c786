#include "base/philox.h"

#include <gtest/gtest.h>

namespace flywheel {
namespace {

TEST(Philox, MatchesRandom123) {
  // kat_vectors of Random123: philox4x32 10 rounds, counter and key all ones.
  const PhiloxBlock zero = philox4x32(0, 0, 0);
  EXPECT_EQ(zero, (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const PhiloxBlock ones = philox4x32(~0ull, ~0ull, ~0ull);
  EXPECT_EQ(ones, (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Philox, PermutationIsOne) {
  for (const uint64_t n : {1, 2, 3, 7, 64, 1000, 4097}) {
    const Permutation permutation(42, 3, n);
    std::vector<bool> seen(n);
    for (uint64_t i = 0; i < n; ++i) seen[permutation(i)] = true;
    EXPECT_EQ(std::count(seen.begin(), seen.end(), true), static_cast<int64_t>(n));
  }
}

TEST(Philox, BelowIsUniform) {
  Philox rng(7, 1);
  std::vector<int> counts(10);
  for (int i = 0; i < 100000; ++i) ++counts[rng.below(10)];
  double chi2 = 0;
  for (const int c : counts) chi2 += (c - 10000.0) * (c - 10000.0) / 10000.0;
  EXPECT_LT(chi2, 27.9);  // 9 degrees of freedom, p = 0.001
}

}  // namespace
}  // namespace flywheel
