// Who is served in a step: a pure function from what there is to what to do.
//
// The policy, in order:
//   1. Every running sequence whose tokens are all computed but the newest decodes one token.
//   2. What is left of the token budget goes to prefill: running sequences first, oldest first, in chunks.
//      One whose tokens' logits are all wanted takes no more of them than rows of logits are left beside one
//      for each of the others.
//   3. Waiting sequences are admitted, first come first served, when blocks for all their tokens are free; a
//      preempted one waits at the head.
// When a sequence needs a block and none is free, the youngest running one is preempted: its blocks come
// back and its tokens are computed again later. The oldest is never preempted for a younger one, so it
// always finishes: nothing starves.
//
// Threads: none of its own; same input, same output. Errors: none.
//
//   Plan plan = plan_step(state, {.step_tokens = 512, .max_running = 256});
#pragma once

#include <cstdint>
#include <vector>

namespace flywheel::engine {

inline constexpr int64_t kBlockTokens = 16;
inline int64_t blocks_for(int64_t tokens) {
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}

struct SchedulerSequence {
  int64_t id = 0;
  int64_t tokens = 0;      // known: prompt and output
  int64_t computed = 0;    // of them, in the cache (for a waiting one: found there by its prefix)
  int64_t blocks = 0;      // held (waiting: to be shared)
  int64_t own_blocks = 0;  // of them, free once this sequence lets go (waiting: counted in free_blocks now)
  bool every_row = false;  // logits of all its tokens are wanted, not of the last one alone
};

struct SchedulerState {
  std::vector<SchedulerSequence> running;  // oldest first
  std::vector<SchedulerSequence> waiting;  // next first
  int64_t free_blocks = 0;
};

struct SchedulerLimits {
  int64_t step_tokens = 512;
  int64_t max_running = 256;             // at most step_tokens
  int64_t step_rows = int64_t{1} << 30;  // of logits; at least max_running
};

struct Chunk {
  int64_t id = 0;
  int64_t begin = 0, end = 0;  // tokens to compute; the last of all known tokens makes a new one
  int64_t new_blocks = 0;
};

struct Plan {
  std::vector<int64_t> preempt;  // youngest first; done before anything else
  std::vector<int64_t> admit;    // in order
  std::vector<Chunk> decode, prefill;

  void clear() { preempt.clear(), admit.clear(), decode.clear(), prefill.clear(); }
};

Plan plan_step(const SchedulerState& state, const SchedulerLimits& limits);

}  // namespace flywheel::engine
