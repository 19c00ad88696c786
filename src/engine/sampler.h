// The next token of one sequence, from its logits: a pure function of (logits, parameters, what was written
// before, the random number at the position), so it does not depend on the batch.
//
// Order, as the field does it: logit bias; repetition, presence and frequency penalties; then with
// temperature 0 the largest logit (of equal ones the smallest id), else temperature, min_p, top_k, top_p, and
// the token in which the random number falls when the remaining ones are laid end to end, likeliest first.
// Log-probabilities are those of the model itself, before all this. kNoToken where what would be taken has a
// logit that is not a number: the model's weights are damaged.
//
// Threads: any; scratch memory is each thread's own.
//
//   GeneratedToken token = sample(logits, {.params = params, .counts = counts, .uniform = u});
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>

#include "engine/request.h"

namespace flywheel::engine {

// How often each token stands in the output; one that is only in the prompt has 0.
class TokenCounts {
 public:
  void see_prompt(TokenId id) { counts_.try_emplace(id, 0); }
  void see_output(TokenId id) { ++counts_[id]; }
  const std::unordered_map<TokenId, int>& map() const { return counts_; }

 private:
  std::unordered_map<TokenId, int> counts_;
};

// Whether a request's parameters need TokenCounts at all.
bool needs_counts(const SamplingParams& params);

struct SampleInput {
  const SamplingParams& params;
  const TokenCounts& counts;
  std::span<const TokenId> banned;  // may not come now
  std::optional<int> logprobs;      // as in GenerationRequest
  float uniform = 0;                // in [0, 1)
};

// `logits` is overwritten.
GeneratedToken sample(std::span<float> logits, const SampleInput& input);

// A token that is given: its log-probability and those of the `top` likeliest ones, with the bits that
// sample() has them. kNoToken where they are not numbers.
GeneratedToken score(std::span<const float> logits, TokenId id, int top);

// The random number for a token: element (seed, sequence, position) of the generator.
float uniform_for(uint64_t seed, int index, int64_t position);

}  // namespace flywheel::engine
