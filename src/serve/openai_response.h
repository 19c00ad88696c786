// The JSON of OpenAI's answers, from the engine's events. Pure functions of their arguments.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/request.h"
#include "model/tokenizer.h"

namespace flywheel::serve {

enum class Api { kCompletions, kChat };

// What stands in every object of one call.
struct CallInfo {
  Api api = Api::kChat;
  std::string id;     // "chatcmpl-..." or "cmpl-..."
  std::string model;  // as the client named it
  int64_t created_s = 0;
  bool logprobs = false;
  int64_t top_logprobs = 0;
  bool stream_usage = false;  // chunks carry "usage": null, the last one the figures
};

struct Usage {
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
};

// One choice, grown from events. For completions `echo` is what it begins with.
struct Choice {
  std::string text;
  std::vector<engine::GeneratedToken> tokens;
  std::string finish_reason;  // "" while it grows
};

OrderedJson usage_json(const Usage& usage);
// The whole answer of a call that does not stream.
OrderedJson response_json(const CallInfo& call, const std::vector<Choice>& choices, const Usage& usage,
                          const model::Tokenizer& tokenizer);
// One chunk of a stream: what is new in choice `index`. `first`: a chat's chunk also says the role.
// `text_offset`: bytes of the choice's text before this chunk.
OrderedJson chunk_json(const CallInfo& call, int index, const Choice& piece, bool first, size_t text_offset,
                       const model::Tokenizer& tokenizer);
// The chunk after the last: no choice, only figures.
OrderedJson usage_chunk_json(const CallInfo& call, const Usage& usage);

// Text as it goes over the wire; ill-formed UTF-8 is replaced.
std::string to_wire(const OrderedJson& json);

}  // namespace flywheel::serve
