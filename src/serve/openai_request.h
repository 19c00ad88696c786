// What a client asked for: the JSON of /v1/completions and /v1/chat/completions, checked and typed.
//
// Every field that OpenAI documents is read, or refused by its name when this server cannot do it; a
// misspelt one gets the nearest name. Beyond OpenAI's: top_k, min_p, repetition_penalty, stop_token_ids,
// ignore_eos (the names that vLLM uses).
// Errors: ApiError 400 with the field in `param`.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "serve/api_error.h"

namespace flywheel::serve {

// One prompt of a completions request: text, or token ids as they are.
struct Prompt {
  std::string text;
  std::vector<int32_t> tokens;
  bool is_tokens = false;
};

struct GenerationFields {
  std::string model;
  std::optional<int64_t> max_tokens;  // absent: the API's default
  double temperature = 1, top_p = 1, min_p = 0;
  int64_t top_k = 0;  // 0: no limit
  double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  std::map<int32_t, double> logit_bias;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int64_t n = 1;
  bool stream = false, include_usage = false;
  bool logprobs = false;
  int64_t top_logprobs = 0;
};

struct CompletionRequest {
  GenerationFields generation;
  std::vector<Prompt> prompts;
  bool echo = false;
};

struct ChatRequest {
  GenerationFields generation;
  OrderedJson messages;              // as given, checked: what a chat template expects
  OrderedJson chat_template_kwargs;  // extra variables for the template (vLLM's name)
  bool add_generation_prompt = true;
};

CompletionRequest parse_completion_request(std::string_view body);
ChatRequest parse_chat_request(std::string_view body);

}  // namespace flywheel::serve
