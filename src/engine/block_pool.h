// Numbers of the fixed-size KV-cache blocks of one engine: who holds which, which are free, which hold a
// beginning that others can share.
//
// A block is counted: shared by every sequence that has the same beginning. A full block can be published
// under the hash of all tokens up to its end; when its last reference goes it stays findable until its
// memory is wanted, least recently used first. Blocks of the same hash have the same bits, so sharing never
// changes a result.
//
// Ownership: the pool gives out numbers; the memory is KvCache's (executor.h).
// Threads: one, the engine's step loop.
// Errors: kFull when no block is free or evictable; nothing was changed then. CHECK on a wrong release.
//
//   BlockPool pool(1024);
//   Result<int32_t> block = pool.allocate();       // kFull: preempt somebody
//   pool.publish(block.value(), prefix_hash);      // now others can share it
//   int32_t same = pool.find(prefix_hash);         // -1: not there; else acquire(same)
//   pool.release(block.value());
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/result.h"

namespace flywheel::engine {

using BlockId = int32_t;
inline constexpr BlockId kNoBlock = -1;

class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);

  // A block with one reference, whose content is nobody's. Evicts the least recently used unreferenced one.
  Result<BlockId> allocate();
  void acquire(BlockId block);  // one more reference
  void release(BlockId block);
  // From now on find(hash) gives this block, until it is evicted. The first block of a hash stays.
  void publish(BlockId block, uint64_t hash);
  BlockId find(uint64_t hash) const;

  int32_t size() const { return static_cast<int32_t>(blocks_.size()); }
  // Blocks that allocate() could give: without references, whether published or not.
  int32_t free() const { return free_; }
  int32_t references(BlockId block) const { return blocks_[static_cast<size_t>(block)].references; }

 private:
  struct Block {
    int32_t references = 0;
    BlockId previous = kNoBlock, next = kNoBlock;  // in the list of free blocks
    bool published = false;
    uint64_t hash = 0;
  };
  Block& at(BlockId block);
  void append_to_free(BlockId block);
  void remove_from_free(BlockId block);
  std::vector<Block> blocks_;
  BlockId first_free_ = kNoBlock, last_free_ = kNoBlock;  // least recently used first
  int32_t free_ = 0;
  std::unordered_map<uint64_t, BlockId> published_;
};

}  // namespace flywheel::engine
