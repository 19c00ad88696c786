#include "engine/block_pool.h"

namespace flywheel::engine {

BlockPool::BlockPool(int32_t num_blocks) : blocks_(static_cast<size_t>(num_blocks)) {
  CHECK(num_blocks > 0, "a pool of {} blocks", num_blocks);
  published_.reserve(static_cast<size_t>(num_blocks));  // so that no step allocates for the table's buckets
  for (BlockId block = 0; block < num_blocks; ++block) append_to_free(block);
}

BlockPool::Block& BlockPool::at(BlockId block) {
  CHECK(block >= 0 && block < size(), "block {} of {}", block, size());
  return blocks_[static_cast<size_t>(block)];
}

void BlockPool::append_to_free(BlockId block) {
  Block& b = at(block);
  b.previous = last_free_, b.next = kNoBlock;
  (last_free_ == kNoBlock ? first_free_ : at(last_free_).next) = block;
  last_free_ = block;
  ++free_;
}

void BlockPool::remove_from_free(BlockId block) {
  const Block& b = at(block);
  (b.previous == kNoBlock ? first_free_ : at(b.previous).next) = b.next;
  (b.next == kNoBlock ? last_free_ : at(b.next).previous) = b.previous;
  --free_;
}

Result<BlockId> BlockPool::allocate() {
  if (first_free_ == kNoBlock) return make_error(ErrorCode::kFull, "all {} KV blocks are in use", size());
  const BlockId block = first_free_;
  remove_from_free(block);
  Block& b = at(block);
  if (b.published) published_.erase(b.hash);
  b.published = false;
  b.references = 1;
  return block;
}

void BlockPool::acquire(BlockId block) {
  Block& b = at(block);
  if (b.references++ == 0) remove_from_free(block);
}

void BlockPool::release(BlockId block) {
  Block& b = at(block);
  CHECK(b.references > 0, "block {} released more often than acquired", block);
  if (--b.references == 0) append_to_free(block);
}

void BlockPool::publish(BlockId block, uint64_t hash) {
  Block& b = at(block);
  CHECK(b.references > 0, "publishing block {}, which nobody holds", block);
  if (b.published || !published_.emplace(hash, block).second) return;
  b.published = true;
  b.hash = hash;
}

BlockId BlockPool::find(uint64_t hash) const {
  const auto it = published_.find(hash);
  return it == published_.end() ? kNoBlock : it->second;
}

}  // namespace flywheel::engine
