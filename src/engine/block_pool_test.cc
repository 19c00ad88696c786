#include "engine/block_pool.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/philox.h"

namespace flywheel::engine {
namespace {

TEST(BlockPool, GivesEachBlockOnceAndSaysWhenItIsFull) {
  BlockPool pool(3);
  std::set<BlockId> given;
  for (int i = 0; i < 3; ++i) given.insert(pool.allocate().value());
  EXPECT_EQ(given.size(), 3u);
  EXPECT_EQ(pool.free(), 0);
  EXPECT_EQ(pool.allocate().error().code, ErrorCode::kFull);
  pool.release(*given.begin());
  EXPECT_EQ(pool.allocate().value(), *given.begin());
}

TEST(BlockPool, PublishedBlocksAreFoundUntilTheirMemoryIsWanted) {
  BlockPool pool(2);
  const BlockId a = pool.allocate().value(), b = pool.allocate().value();
  pool.publish(a, 111);
  pool.publish(b, 222);
  pool.release(a);
  pool.release(b);
  EXPECT_EQ(pool.free(), 2);
  EXPECT_EQ(pool.find(111), a);
  pool.acquire(b);  // used again: a is the least recently used now
  pool.release(b);
  EXPECT_EQ(pool.allocate().value(), a);
  EXPECT_EQ(pool.find(111), kNoBlock);
  EXPECT_EQ(pool.find(222), b);
}

TEST(BlockPool, TheFirstBlockOfAHashStays) {
  BlockPool pool(2);
  const BlockId a = pool.allocate().value(), b = pool.allocate().value();
  pool.publish(a, 7);
  pool.publish(b, 7);
  EXPECT_EQ(pool.find(7), a);
  pool.release(b);
  EXPECT_EQ(pool.allocate().value(), b);
  EXPECT_EQ(pool.find(7), a);
}

TEST(BlockPoolDeathTest, ReleasingTooOftenIsABug) {
  BlockPool pool(1);
  const BlockId a = pool.allocate().value();
  pool.release(a);
  EXPECT_DEATH(pool.release(a), "released more often");
}

// Against a model of it that only counts.
TEST(BlockPool, RandomUseKeepsCounts) {
  Philox random(3);
  BlockPool pool(17);
  std::map<BlockId, int> held;
  std::vector<BlockId> references;
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t what = random.below(4);
    if (what == 0) {
      const Result<BlockId> block = pool.allocate();
      ASSERT_EQ(block.ok(), held.size() < 17);
      if (!block.ok()) continue;
      ASSERT_EQ(held.count(block.value()), 0u);
      held[block.value()] = 1;
      references.push_back(block.value());
    } else if (what == 1) {
      const BlockId found = pool.find(random.below(50));
      if (found == kNoBlock) continue;
      pool.acquire(found);
      ++held[found];
      references.push_back(found);
    } else if (!references.empty()) {
      const size_t at = random.below(references.size());
      const BlockId block = references[at];
      if (what == 2) {
        pool.publish(block, random.below(50));
        continue;
      }
      references.erase(references.begin() + static_cast<std::ptrdiff_t>(at));
      pool.release(block);
      if (--held[block] == 0) held.erase(block);
    }
    ASSERT_EQ(pool.free(), 17 - static_cast<int32_t>(held.size()));
  }
}

}  // namespace
}  // namespace flywheel::engine
