#include "engine/sequence.h"

#include "base/hash.h"
#include "engine/scheduler.h"

namespace flywheel::engine {

Sequence::Sequence(int64_t id, std::shared_ptr<ActiveRequest> of, int index,
                   const model::Tokenizer* tokenizer)
    : id(id),
      active(std::move(of)),
      index(index),
      tokens(active->request.prompt),
      text(tokenizer, active->request.stop,
           active->request.stop_in_output ? StopInOutput::kKeep : StopInOutput::kDrop) {
  const auto most = tokens.size() + static_cast<size_t>(active->max_tokens);
  tokens.reserve(most);
  blocks.reserve(most / kBlockTokens + 1);
  block_hashes.reserve(most / kBlockTokens + 1);
  if (scores_prompt()) {
    prompt_tokens.resize(tokens.size());
    prompt_tokens[0].id = tokens[0];
  }
  if (needs_counts(active->request.sampling)) {
    for (const TokenId token : tokens) counts.see_prompt(token);
  }
}

void Sequence::hash_full_blocks(uint64_t key) {
  for (size_t block = block_hashes.size(); (block + 1) * kBlockTokens <= tokens.size(); ++block) {
    const auto* first = reinterpret_cast<const char*>(tokens.data() + block * kBlockTokens);
    const uint64_t before = block == 0 ? key : block_hashes.back();
    block_hashes.push_back(xxh64({first, kBlockTokens * sizeof(TokenId)}, before));
  }
}

}  // namespace flywheel::engine
