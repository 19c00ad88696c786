// The engine without its thread: sequences, blocks and the model, one step() at a time.
//
//   plan (scheduler.h) -> blocks (block_pool.h) -> forward (executor.h) -> sample (sampler.h) -> events
//
// Everything is deterministic: the same calls in the same order give the same events. Engine (engine.h) puts
// a thread and a mailbox around it; tests drive it directly.
//
// Ownership: owns the executor, the pool of blocks and all sequences; refers to the tokenizer and metrics.
// Threads: one. Errors: none; requests were validated before.
//
//   EngineLoop loop(std::move(executor), options, &tokenizer, metrics, pool);
//   loop.add(active);
//   while (loop.step()) {}
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "engine/block_pool.h"
#include "engine/engine.h"
#include "engine/executor.h"
#include "engine/metrics.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"

namespace flywheel::engine {

struct LoopOptions {
  SchedulerLimits limits;
  bool prefix_cache = true;
  uint64_t hash_key = 0;
};

class EngineLoop {
 public:
  EngineLoop(std::unique_ptr<Executor> executor, const LoopOptions& options,
             const model::Tokenizer* tokenizer, EngineMetrics& metrics, ThreadPool& pool);

  void add(const std::shared_ptr<ActiveRequest>& active);
  // Ends what is left of the request with `reason`. Unknown ids are ignored.
  void end(RequestId id, FinishReason reason, const std::string& error = "");
  void end_all(FinishReason reason, const std::string& error);
  // Serves one batch; false when there was nothing to do.
  bool step();

  // Counters as of the last step.
  const EngineStats& stats() const { return stats_; }

 private:
  using SequencePtr = std::unique_ptr<Sequence>;
  // Of logits, and what they gave.
  struct Row {
    Sequence* sequence;
    int64_t prompt_position;  // of the prompt's token whose score its logits are for; 0: for a new token
    GeneratedToken token;
  };
  void find_prefixes();
  void carry_out(const Plan& plan);
  void preempt(int64_t id);
  void admit(int64_t id);
  void add_chunk(const Chunk& chunk);
  void compute();
  void take_row(Row& row);
  void end_damaged(Sequence& sequence, int64_t tokens);
  void take_token(Sequence& sequence, GeneratedToken token);
  void publish_blocks(Sequence& sequence);
  void start_siblings(const Sequence& sequence);
  void emit(Sequence& sequence, OutputText::Piece piece, std::optional<FinishReason> finish,
            const std::string& error = "");
  void release_blocks(Sequence& sequence);
  void erase_finished();
  void count();

  std::unique_ptr<Executor> executor_;
  LoopOptions options_;
  const model::Tokenizer* tokenizer_;
  EngineMetrics& metrics_;
  ThreadPool& pool_;
  BlockPool blocks_;
  std::vector<SequencePtr> running_;  // oldest first
  std::deque<SequencePtr> waiting_;   // next first
  std::vector<SequencePtr>
      siblings_;  // wait for the first sequence of their request to have its prompt computed
  std::vector<std::vector<BlockId>> prefixes_;  // of waiting_[i], for the candidates of this step
  int64_t next_sequence_ = 0;
  EngineStats stats_;

  // Of the step in progress; kept so that nothing is allocated anew.
  SchedulerState state_;
  Batch batch_;
  std::vector<Row> rows_;
  std::vector<Sequence*> computed_;
};

}  // namespace flywheel::engine
