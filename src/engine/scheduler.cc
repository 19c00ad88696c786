#include "engine/scheduler.h"

#include <algorithm>

namespace flywheel::engine {
namespace {

class Planner {
 public:
  Planner(const SchedulerState& state, const SchedulerLimits& limits)
      : state_(state), limits_(limits), free_(state.free_blocks), alive_(state.running.size()) {
    budget_ = limits.step_tokens;
    spare_rows_ = limits.step_rows - static_cast<int64_t>(alive_);
    chunked_.assign(state.running.size(), false);
  }

  Plan run() {
    for (size_t i = 0; i < alive_; ++i) {
      const SchedulerSequence& s = state_.running[i];
      if (s.tokens - s.computed == 1) serve(i, plan_.decode);
    }
    for (size_t i = 0; i < alive_ && budget_ > 0; ++i) {
      if (state_.running[i].tokens - state_.running[i].computed > 1) serve(i, plan_.prefill);
    }
    // After a preemption memory is short: whoever came in now would be the next to go.
    if (plan_.preempt.empty()) admit();
    // A sequence can be preempted after its chunk was planned.
    const auto is_gone = [&](const Chunk& chunk) {
      return std::ranges::find(plan_.preempt, chunk.id) != plan_.preempt.end();
    };
    std::erase_if(plan_.decode, is_gone);
    std::erase_if(plan_.prefill, is_gone);
    return std::move(plan_);
  }

 private:
  // Where the next chunk ends, by tokens and rows of logits; takes the rows beyond the sequence's own one.
  int64_t end_of_chunk(const SchedulerSequence& s) {
    int64_t tokens = std::min(s.tokens - s.computed, budget_);
    if (s.every_row && tokens > 1) {
      tokens = std::min(tokens, 1 + spare_rows_);
      spare_rows_ -= tokens - 1;
    }
    return s.computed + tokens;
  }

  // Gives running sequence i its next tokens, taking blocks from younger ones if it must.
  void serve(size_t i, std::vector<Chunk>& chunks) {
    const SchedulerSequence& s = state_.running[i];
    const int64_t end = end_of_chunk(s);
    if (end == s.computed) return;
    const int64_t new_blocks = std::max<int64_t>(0, blocks_for(end) - s.blocks);
    while (free_ < new_blocks) {
      preempt_youngest();
      if (alive_ <= i) return;  // it was the youngest itself
    }
    chunks.push_back({s.id, s.computed, end, new_blocks});
    chunked_[i] = true;
    free_ -= new_blocks;
    budget_ -= end - s.computed;
  }

  void preempt_youngest() {
    const SchedulerSequence& s = state_.running[--alive_];
    plan_.preempt.push_back(s.id);
    free_ += s.own_blocks;
    if (!chunked_[alive_]) return;
    for (const std::vector<Chunk>* chunks : {&plan_.decode, &plan_.prefill}) {
      for (const Chunk& chunk : *chunks) {
        if (chunk.id != s.id) continue;
        free_ += chunk.new_blocks;
        budget_ += chunk.end - chunk.begin;
      }
    }
  }

  // A running prefill that is not complete has used up the budget, so whoever comes in here competes with
  // decodes only.
  void admit() {
    auto running = static_cast<int64_t>(alive_);
    for (const SchedulerSequence& s : state_.waiting) {
      if (budget_ <= 0 || running >= limits_.max_running || spare_rows_ <= 0) return;
      const int64_t wanted = blocks_for(s.tokens) - s.blocks;
      if (wanted + s.own_blocks > free_) return;  // nobody overtakes the head of the queue
      --spare_rows_;
      const int64_t end = end_of_chunk(s);
      const int64_t new_blocks = std::max<int64_t>(0, blocks_for(end) - s.blocks);
      plan_.admit.push_back(s.id);
      (s.tokens - s.computed == 1 ? plan_.decode : plan_.prefill)
          .push_back({s.id, s.computed, end, new_blocks});
      free_ -= new_blocks + s.own_blocks;
      budget_ -= end - s.computed;
      ++running;
    }
  }

  const SchedulerState& state_;
  const SchedulerLimits& limits_;
  Plan plan_;
  int64_t free_, budget_;
  int64_t spare_rows_;         // of logits, beside one for each that runs
  size_t alive_;               // running[0, alive_) are not preempted
  std::vector<bool> chunked_;  // has a chunk in this plan
};

}  // namespace

Plan plan_step(const SchedulerState& state, const SchedulerLimits& limits) {
  return Planner(state, limits).run();
}

}  // namespace flywheel::engine
