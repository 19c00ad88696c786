#include <gtest/gtest.h>

#include "base/config.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/philox.h"
#include "base/thread_pool.h"

namespace flywheel {
namespace {

struct Inner {
  double lr = 3e-4;
  std::vector<int> sizes = {1, 2};
  template <typename V>
  void fields(V& v) { v("lr", lr), v("sizes", sizes); }
};
struct Outer {
  std::string name = "x";
  Inner optimizer;
  template <typename V>
  void fields(V& v) { v("name", name), v("optimizer", optimizer); }
};

TEST(Config, ReadsOverridesAndNamesTheNearestKey) {
  const auto config = parse_config<Outer>("t.yaml", "name: hello\noptimizer:\n  lr: 1e-3\n", {"optimizer.sizes=[4]"});
  EXPECT_EQ(config.name, "hello");
  EXPECT_EQ(config.optimizer.sizes, std::vector<int>{4});
  try {
    parse_config<Outer>("t.yaml", "name: a\noptimizer:\n  lrr: 1\n");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "t.yaml:3: optimizer.lrr: no such key; did you mean optimizer.lr?");
  }
  EXPECT_EQ(parse_config<Outer>("d", dump_config(config)).optimizer.lr, 1e-3);
}

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

TEST(Hash, KnownValues) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(File, WriteReadMapAndStayWithin) {
  const TempFolder folder;
  ASSERT_TRUE(write_file(folder / "a/b.txt", "hello").ok());
  EXPECT_EQ(read_file(folder / "a/b.txt").value(), "hello");
  EXPECT_EQ(MappedFile::open(folder / "a/b.txt").value().bytes(), "hello");
  EXPECT_EQ(list_folder(folder / "a").value(), std::vector<std::string>{"b.txt"});
  EXPECT_EQ(path_within(folder.path(), "../x").error().code, ErrorCode::kDenied);
  EXPECT_TRUE(path_within(folder.path(), "a/b.txt").ok());
}

TEST(ThreadPool, SumDoesNotDependOnThreads) {
  double sums[3];
  int at = 0;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 1000; ++repeat) {
      sums[at] = pool.parallel_sum(10000, 37, [](int64_t b, int64_t e) {
        double s = 0;
        for (int64_t i = b; i < e; ++i) s += 1.0 / static_cast<double>(i + 1);
        return s;
      });
    }
    ++at;
  }
  EXPECT_EQ(sums[0], sums[1]);
  EXPECT_EQ(sums[0], sums[2]);
}

}  // namespace
}  // namespace flywheel
