#include "engine/engine_loop.h"

#include <fmt/format.h>

#include <algorithm>

namespace flywheel::engine {

EngineLoop::EngineLoop(std::unique_ptr<Executor> executor, const LoopOptions& options,
                       const model::Tokenizer* tokenizer, EngineMetrics& metrics, ThreadPool& pool)
    : executor_(std::move(executor)),
      options_(options),
      tokenizer_(tokenizer),
      metrics_(metrics),
      pool_(pool),
      blocks_(static_cast<int32_t>(executor_->limits().num_blocks)) {
  stats_.blocks = blocks_.size();
  count();
}

void EngineLoop::add(const std::shared_ptr<ActiveRequest>& active) {
  active->unfinished = active->request.n;
  waiting_.push_back(std::make_unique<Sequence>(next_sequence_++, active, 0, tokenizer_));
  // The others find the prompt in the prefix cache once the first has computed it.
  for (int index = 1; index < active->request.n; ++index) {
    siblings_.push_back(std::make_unique<Sequence>(next_sequence_++, active, index, tokenizer_));
  }
  stats_.prompt_tokens += active->request.prompt.size();
  metrics_.prompt_tokens.add(static_cast<double>(active->request.prompt.size()));
  count();
}

void EngineLoop::end(RequestId id, FinishReason reason, const std::string& error) {
  const auto end_in = [&](auto& sequences) {
    for (SequencePtr& sequence : sequences) {
      if (sequence && sequence->active->id == id) emit(*sequence, sequence->text.finish(), reason, error);
    }
  };
  end_in(running_), end_in(waiting_), end_in(siblings_);
  erase_finished();
  count();
}

void EngineLoop::end_all(FinishReason reason, const std::string& error) {
  for (;;) {
    const Sequence* any = !running_.empty()    ? running_.front().get()
                          : !waiting_.empty()  ? waiting_.front().get()
                          : !siblings_.empty() ? siblings_.front().get()
                                               : nullptr;
    if (any == nullptr) return;
    end(any->active->id, reason, error);
  }
}

bool EngineLoop::step() {
  if (running_.empty() && waiting_.empty()) return false;
  const Stopwatch clock;
  find_prefixes();
  state_.running.clear(), state_.waiting.clear();
  for (const SequencePtr& s : running_) {
    int64_t own = 0;
    for (const BlockId block : s->blocks) own += blocks_.references(block) == 1;
    state_.running.push_back({s->id, static_cast<int64_t>(s->tokens.size()), s->computed,
                              static_cast<int64_t>(s->blocks.size()), own, s->scores_prompt()});
  }
  for (size_t i = 0; i < prefixes_.size(); ++i) {
    const auto found = static_cast<int64_t>(prefixes_[i].size());
    int64_t unreferenced = 0;
    for (const BlockId block : prefixes_[i]) unreferenced += blocks_.references(block) == 0;
    state_.waiting.push_back({waiting_[i]->id, static_cast<int64_t>(waiting_[i]->tokens.size()),
                              found * kBlockTokens, found, unreferenced, waiting_[i]->scores_prompt()});
  }
  state_.free_blocks = blocks_.free();
  carry_out(plan_step(state_, options_.limits));
  compute();
  ++stats_.steps;
  metrics_.step_seconds.observe(clock.seconds());
  metrics_.step_tokens.observe(static_cast<double>(batch_.ids_T.size()));
  erase_finished();
  count();
  return true;
}

// Which blocks of those who may be admitted are in the cache. At least one token is left to compute: its
// logits are what the sequence came for. One whose prompt is scored comes for those of all its tokens.
void EngineLoop::find_prefixes() {
  const auto room = std::max<int64_t>(0, options_.limits.max_running - static_cast<int64_t>(running_.size()));
  prefixes_.resize(std::min(waiting_.size(), static_cast<size_t>(room)));
  for (size_t i = 0; i < prefixes_.size(); ++i) {
    prefixes_[i].clear();
    Sequence& s = *waiting_[i];
    if (!options_.prefix_cache || s.scores_prompt()) continue;
    s.hash_full_blocks(options_.hash_key);
    const size_t most = (s.tokens.size() - 1) / kBlockTokens;
    for (size_t block = 0; block < most; ++block) {
      const BlockId found = blocks_.find(s.block_hashes[block]);
      if (found == kNoBlock) break;
      prefixes_[i].push_back(found);
    }
  }
}

void EngineLoop::carry_out(const Plan& plan) {
  for (const int64_t id : plan.preempt) preempt(id);
  // Shared blocks are taken before new ones are allocated, which could evict them.
  for (const int64_t id : plan.admit) admit(id);
  batch_.clear(), rows_.clear(), computed_.clear();
  for (const Chunk& chunk : plan.decode) add_chunk(chunk);
  for (const Chunk& chunk : plan.prefill) add_chunk(chunk);
}

void EngineLoop::preempt(int64_t id) {
  const auto it = std::ranges::find(running_, id, [](const SequencePtr& s) { return s->id; });
  CHECK(it != running_.end(), "preempting sequence {}, which does not run", id);
  release_blocks(**it);
  waiting_.push_front(std::move(*it));
  running_.erase(it);
  ++stats_.preemptions;
  metrics_.preemptions.add(1);
}

// The plan admits the head of the queue; its prefix was found at the same place in this step.
void EngineLoop::admit(int64_t id) {
  const auto index = static_cast<size_t>(std::ranges::find(state_.waiting, id, &SchedulerSequence::id) -
                                         state_.waiting.begin());
  CHECK(!waiting_.empty() && waiting_.front()->id == id && index < prefixes_.size(),
        "sequence {} is not the head of the queue", id);
  SequencePtr s = std::move(waiting_.front());
  waiting_.pop_front();
  for (const BlockId block : prefixes_[index]) {
    blocks_.acquire(block);
    s->blocks.push_back(block);
  }
  s->computed = static_cast<int64_t>(s->blocks.size()) * kBlockTokens;
  s->published_blocks = s->blocks.size();
  if (!s->admitted_before) {
    s->admitted_before = true;
    s->cached_tokens = s->computed;
    metrics_.queue_seconds.observe(s->active->age.seconds());
    if (options_.prefix_cache) {
      stats_.prefix_queried_tokens += s->tokens.size();
      stats_.prefix_hit_tokens += static_cast<uint64_t>(s->computed);
      metrics_.prefix_queries.add(static_cast<double>(s->tokens.size()));
      metrics_.prefix_hits.add(static_cast<double>(s->computed));
    }
  }
  // Oldest first, also when a preempted one comes back.
  const auto at =
      std::ranges::lower_bound(running_, id, {}, [](const SequencePtr& other) { return other->id; });
  running_.insert(at, std::move(s));
}

void EngineLoop::add_chunk(const Chunk& chunk) {
  const auto it =
      std::ranges::lower_bound(running_, chunk.id, {}, [](const SequencePtr& s) { return s->id; });
  CHECK(it != running_.end() && (*it)->id == chunk.id, "a chunk for sequence {}, which does not run",
        chunk.id);
  Sequence& s = **it;
  for (int64_t i = 0; i < chunk.new_blocks; ++i) {
    Result<BlockId> block = blocks_.allocate();
    CHECK(block.ok(), "the plan gave out more blocks than there are");
    s.blocks.push_back(block.value());
  }
  const auto first_row = static_cast<int64_t>(batch_.ids_T.size());
  const auto prompt = static_cast<int64_t>(s.active->request.prompt.size());
  for (int64_t position = chunk.begin; position < chunk.end; ++position) {
    const bool scores = s.scores_prompt() && position + 1 < prompt;
    const bool last = position + 1 == static_cast<int64_t>(s.tokens.size());
    if (scores || (last && s.active->max_tokens > 0)) {
      batch_.logit_rows.push_back(static_cast<int32_t>(batch_.ids_T.size()));
      rows_.push_back({&s, scores ? position + 1 : 0, {}});
    }
    batch_.ids_T.push_back(s.tokens[static_cast<size_t>(position)]);
    batch_.positions_T.push_back(static_cast<int32_t>(position));
  }
  batch_.sequences.push_back({s.blocks.data(), first_row, chunk.end - chunk.begin, chunk.begin});
  s.computed = chunk.end;
  computed_.push_back(&s);
}

void EngineLoop::compute() {
  if (batch_.ids_T.empty()) return;
  const float* logits_RV = executor_->forward(batch_);
  const int64_t vocab = executor_->decoder().config.vocab_size;
  pool_.parallel_for(static_cast<int64_t>(rows_.size()), 1, [&](int64_t row, int64_t) {
    Row& r = rows_[static_cast<size_t>(row)];
    const ActiveRequest& active = *r.sequence->active;
    const std::span<float> logits(const_cast<float*>(logits_RV) + row * vocab, static_cast<size_t>(vocab));
    if (r.prompt_position > 0) {
      r.token = score(logits, active.request.prompt[static_cast<size_t>(r.prompt_position)],
                      *active.request.logprobs);
      return;
    }
    const bool too_early = r.sequence->output_tokens() < active.request.min_tokens;
    const SampleInput input{
        .params = active.request.sampling,
        .counts = r.sequence->counts,
        .banned = too_early ? std::span<const TokenId>(active.end_tokens) : std::span<const TokenId>(),
        .logprobs = active.request.logprobs,
        .uniform =
            uniform_for(active.seed, r.sequence->index, static_cast<int64_t>(r.sequence->tokens.size()))};
    r.token = sample(logits, input);
  });
  for (Sequence* s : computed_) publish_blocks(*s);
  for (Row& row : rows_) take_row(row);
  for (Sequence* s : computed_) {  // those who came for the prompt alone
    if (s->finished || s->active->max_tokens > 0 || s->computed < static_cast<int64_t>(s->tokens.size()))
      continue;
    if (s->index == 0) start_siblings(*s);
    emit(*s, {}, FinishReason::kLength);
  }
}

void EngineLoop::take_row(Row& row) {
  Sequence& s = *row.sequence;
  if (s.finished) return;  // an earlier row's logits were no numbers
  if (row.prompt_position == 0) return take_token(s, std::move(row.token));
  if (row.token.id == kNoToken) return end_damaged(s, row.prompt_position);
  s.prompt_tokens[static_cast<size_t>(row.prompt_position)] = std::move(row.token);
}

// The logits after so many of its tokens are not numbers.
void EngineLoop::end_damaged(Sequence& s, int64_t tokens) {
  if (s.index == 0 && s.output_tokens() == 0) start_siblings(s);  // they will end in the same way
  emit(s, {}, FinishReason::kError,
       fmt::format("the model's logits are not numbers after {} tokens: its weights are damaged, or it was "
                   "trained until they were no numbers any more",
                   tokens));
}

void EngineLoop::publish_blocks(Sequence& s) {
  if (!options_.prefix_cache) return;
  s.hash_full_blocks(options_.hash_key);
  for (; static_cast<int64_t>(s.published_blocks + 1) * kBlockTokens <= s.computed; ++s.published_blocks) {
    blocks_.publish(s.blocks[s.published_blocks], s.block_hashes[s.published_blocks]);
  }
}

void EngineLoop::take_token(Sequence& s, GeneratedToken token) {
  ActiveRequest& active = *s.active;
  const TokenId id = token.id;
  if (id == kNoToken) return end_damaged(s, static_cast<int64_t>(s.tokens.size()));
  s.tokens.push_back(id);
  if (needs_counts(active.request.sampling)) s.counts.see_output(id);
  ++stats_.generated_tokens;
  metrics_.generation_tokens.add(1);
  if (s.output_tokens() == 1) {
    metrics_.first_token_seconds.observe(active.age.seconds());
    if (s.index == 0) start_siblings(s);
  } else {
    metrics_.inter_token_seconds.observe(s.since_last_token.seconds());
  }
  s.since_last_token.restart();

  const bool ends = std::ranges::find(active.end_tokens, id) != active.end_tokens.end();
  OutputText::Piece piece = ends && !active.request.stop_in_output ? s.text.push_silent(std::move(token))
                                                                   : s.text.push(std::move(token));
  std::optional<FinishReason> finish;
  if (ends || piece.stopped) {
    finish = FinishReason::kStop;
  } else if (s.output_tokens() >= active.max_tokens) {
    finish = FinishReason::kLength;
  }
  if (finish && !piece.stopped) {
    OutputText::Piece rest = s.text.finish();
    piece.text += rest.text;
    std::ranges::move(rest.tokens, std::back_inserter(piece.tokens));
  }
  emit(s, std::move(piece), finish);
}

void EngineLoop::start_siblings(const Sequence& sequence) {
  for (SequencePtr& sibling : siblings_) {
    if (sibling && sibling->active == sequence.active) waiting_.push_back(std::move(sibling));
  }
  std::erase(siblings_, nullptr);
}

void EngineLoop::emit(Sequence& s, OutputText::Piece piece, std::optional<FinishReason> finish,
                      const std::string& error) {
  // Nothing is given out of a prompt that was computed in part.
  const bool prompt_ready =
      s.scores_prompt() && finish != FinishReason::kCancelled && finish != FinishReason::kError;
  if (!finish && !prompt_ready && piece.text.empty() && piece.tokens.empty()) return;
  ActiveRequest& active = *s.active;
  GenerationEvent event;
  event.request = active.id;
  event.index = s.index;
  event.text = std::move(piece.text);
  event.tokens = std::move(piece.tokens);
  if (prompt_ready) event.prompt = std::move(s.prompt_tokens), s.prompt_out = true;
  event.finish = finish;
  event.error = error;
  event.stop_match = std::move(piece.stop_match);
  event.prompt_tokens = static_cast<int64_t>(active.request.prompt.size());
  event.cached_tokens = s.cached_tokens;
  event.output_tokens = s.output_tokens();
  if (finish) {
    release_blocks(s);
    s.finished = true;
    event.last = --active.unfinished == 0;
    metrics_.finished(*finish).add(1);
    metrics_.e2e_seconds.observe(active.age.seconds());
  }
  active.callback(event);
  if (event.last) active.callback = nullptr;
}

void EngineLoop::release_blocks(Sequence& s) {
  // The end of a beginning is of use to fewer than its start: it is to be evicted first.
  for (auto block = s.blocks.rbegin(); block != s.blocks.rend(); ++block) blocks_.release(*block);
  s.blocks.clear();
  s.computed = 0;
  s.published_blocks = 0;
}

void EngineLoop::erase_finished() {
  const auto is_finished = [](const SequencePtr& s) { return s->finished; };
  std::erase_if(running_, is_finished);
  std::erase_if(waiting_, is_finished);
  std::erase_if(siblings_, is_finished);
}

void EngineLoop::count() {
  stats_.running = static_cast<int64_t>(running_.size());
  stats_.waiting = static_cast<int64_t>(waiting_.size() + siblings_.size());
  stats_.free_blocks = blocks_.free();
  metrics_.running.set(static_cast<double>(stats_.running));
  metrics_.waiting.set(static_cast<double>(stats_.waiting));
  metrics_.kv_usage.set(1.0 - static_cast<double>(blocks_.free()) / blocks_.size());
}

}  // namespace flywheel::engine
