#include "runtime/rope.h"

#include <gtest/gtest.h>

#include "base/philox.h"

namespace flywheel::runtime {
namespace {

TEST(Rope, ReadsLikeTheStringsThatItIsMadeOf) {
  Philox rng(7);
  for (int round = 0; round < 100; ++round) {
    std::string whole;
    Rope rope;
    for (uint64_t part = rng.below(6); part > 0; --part) {
      std::string bytes(rng.below(20), '\0');
      for (char& c : bytes) c = static_cast<char>(rng.below(256));
      whole += bytes;
      if (rng.below(2) == 0) {
        rope.append(bytes);
      } else {
        auto owner = std::make_shared<const std::string>(bytes);
        rope.append(*owner, owner);
      }
    }
    ASSERT_EQ(rope.size(), whole.size());
    EXPECT_EQ(rope.substr(0), whole);
    const size_t offset = rng.below(whole.size() + 1), count = rng.below(whole.size() + 5);
    EXPECT_EQ(rope.substr(offset, count), whole.substr(offset, count)) << offset << " " << count;
    EXPECT_EQ(rope.substr(whole.size() + 3, 2), "");
    Rope twice = rope;
    twice.append(rope);
    EXPECT_EQ(twice.substr(0), whole + whole);
  }
}

TEST(Rope, SharesWhatItsCopiesRead) {
  auto owner = std::make_shared<const std::string>("shared bytes");
  const std::weak_ptr<const std::string> alive = owner;
  Rope rope;
  rope.append(*owner, owner);
  Rope copy = rope;
  owner.reset();
  rope = Rope();
  ASSERT_FALSE(alive.expired());
  EXPECT_EQ(copy.substr(7), "bytes");
  EXPECT_EQ(copy.parts().front().bytes.data(), alive.lock()->data());  // not copied
  copy = Rope();
  EXPECT_TRUE(alive.expired());
}

TEST(Rope, DigestTellsAnyBitApart) {
  Rope rope(std::string("weights"));
  rope.append("moments");
  Rope alike(std::string("weights"));
  alike.append("moments");
  EXPECT_EQ(rope.digest(), alike.digest());
  Rope other(std::string("weights"));
  other.append("momentt");
  EXPECT_NE(rope.digest(), other.digest());
  EXPECT_NE(rope.digest(), Rope(std::string("weights")).digest());
}

}  // namespace
}  // namespace flywheel::runtime
