// One of a request's sequences on its way through the engine. Private to the step loop.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "engine/block_pool.h"
#include "engine/output_text.h"
#include "engine/request.h"
#include "engine/sampler.h"

namespace flywheel::engine {

// What the sequences of one request share.
struct ActiveRequest {
  RequestId id = 0;
  GenerationRequest request;
  std::function<void(const GenerationEvent&)> callback;
  uint64_t seed = 0;
  int64_t max_tokens = 0;
  std::vector<TokenId> end_tokens;  // the model's and the request's own
  int unfinished = 0;               // sequences
  bool first_token_seen = false;
  Stopwatch age;
};

struct Sequence {
  Sequence(int64_t id, std::shared_ptr<ActiveRequest> of, int index, const model::Tokenizer* tokenizer);

  int64_t output_tokens() const {
    return static_cast<int64_t>(tokens.size() - active->request.prompt.size());
  }
  // Whether logits of the prompt's tokens are still to be had. Only the first of the request's sequences
  // does.
  bool scores_prompt() const { return active->request.prompt_logprobs && index == 0 && !prompt_out; }
  // Brings block_hashes up to all full blocks of `tokens`. A hash covers everything up to its block's end;
  // `key` is the engine's own, so that nobody can prepare two beginnings with one hash.
  void hash_full_blocks(uint64_t key);

  int64_t id;  // of the sequence, in order of arrival
  std::shared_ptr<ActiveRequest> active;
  int index;  // among the request's
  std::vector<TokenId> tokens;
  int64_t computed = 0;       // tokens whose keys and values are in `blocks`
  int64_t cached_tokens = 0;  // of the prompt, found in the prefix cache at the first admission
  bool admitted_before = false;
  bool finished = false;
  std::vector<BlockId> blocks;
  std::vector<uint64_t> block_hashes;
  size_t published_blocks = 0;
  std::vector<GeneratedToken> prompt_tokens;  // scored, by position; empty where nobody asked
  bool prompt_out = false;                    // they are out with an event
  TokenCounts counts;
  OutputText text;
  Stopwatch since_last_token;
};

}  // namespace flywheel::engine
