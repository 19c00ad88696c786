// What is asked of the engine and what comes back: plain data.
//
// A request becomes `n` sequences, numbered by `index`; each gives events with new text and tokens and ends
// with exactly one event that has a finish reason. Nothing here depends on who else is being served: with a
// seed, the same request gives the same bits alone and in any company.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace flywheel::engine {

using TokenId = int32_t;
using RequestId = uint64_t;

struct SamplingParams {
  float temperature = 1.0f;  // 0: the most likely token
  float top_p = 1.0f;        // the smallest set of tokens with at least this probability together; 0: one
  int top_k = 0;             // 0: all
  float min_p = 0.0f;        // at least this share of the likeliest token's probability
  float repetition_penalty = 1.0f;  // over prompt and output (Keskar et al. 2019)
  float presence_penalty = 0.0f;    // over output, once for each token seen
  float frequency_penalty = 0.0f;   // over output, for each time that it was seen
  std::map<TokenId, float> logit_bias;
  // Token p of sequence i is drawn with the number at (seed, i, p). Absent: a new seed for each request.
  std::optional<uint64_t> seed;
};

struct GenerationRequest {
  std::vector<TokenId> prompt;  // at least one token
  SamplingParams sampling;
  // Absent: as many as the model's context holds. 0: none, the prompt alone is computed.
  std::optional<int64_t> max_tokens;
  int64_t min_tokens = 0;            // end tokens are not drawn before
  std::vector<std::string> stop;     // the text ends before the first of these
  std::vector<TokenId> stop_tokens;  // beside the model's end tokens
  bool ignore_end_tokens = false;
  bool stop_in_output = false;  // keep the stop string or token in the text
  int n = 1;                    // sequences
  // Log-probabilities of the chosen token and of this many likeliest ones, before penalties and temperature.
  std::optional<int> logprobs;
  // Those of the prompt's tokens as well, each given the ones before it; with `logprobs` alone. The prompt is
  // computed whole for it, since the prefix cache keeps no logits.
  bool prompt_logprobs = false;
};

enum class FinishReason { kStop, kLength, kCancelled, kError };
// "stop", "length", "cancelled", "error"
const char* finish_reason_name(FinishReason reason);

struct TokenLogprob {
  TokenId id;
  float logprob;
};

constexpr TokenId kNoToken = -1;

struct GeneratedToken {
  TokenId id;                     // of sample() alone kNoToken: the logit of the one to take is not a number
  float logprob = 0;              // only with GenerationRequest::logprobs
  std::vector<TokenLogprob> top;  // likeliest first
};

struct GenerationEvent {
  RequestId request = 0;
  int index = 0;                       // which of the n sequences
  std::string text;                    // what is certain now: whole characters, no beginning of a stop string
  std::vector<GeneratedToken> tokens;  // those whose text is out with this event
  // With prompt_logprobs, in the first event of sequence 0, which comes before any of the others': every
  // token of the prompt. The first one, before which nothing stands, has no log-probability.
  std::vector<GeneratedToken> prompt;
  std::optional<FinishReason> finish;            // set in the last event of a sequence, and only there
  bool last = false;                             // the last event of the request
  std::string error;                             // with kError: what went wrong
  std::string stop_match;                        // with kStop: the stop string that was met, or ""
  int64_t prompt_tokens = 0, cached_tokens = 0;  // cached: of the prompt, found in the prefix cache
  int64_t output_tokens = 0;                     // of this sequence so far
};

// Whether the numbers are in their ranges; kInvalid names the field ("top_p: ...").
Result<void> validate(const GenerationRequest& request, int64_t vocab_size);

}  // namespace flywheel::engine
