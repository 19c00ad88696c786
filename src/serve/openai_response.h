// The JSON of OpenAI's answers, from the engine's events. Functions of their arguments.
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
  std::string finish_reason;    // "" while it grows
  bool from_beginning = false;  // the first of `tokens` is the prompt's: it has no log-probability
};

// Where a choice's tokens begin in its text, in characters, as OpenAI counts them. Fed with every token in
// order, so that it is the same streamed and whole. A token that goes on with a character begun before stands
// where that began.
class TextOffset {
 public:
  explicit TextOffset(const model::Tokenizer& tokenizer) : tokenizer_(tokenizer), text_(tokenizer) {}
  size_t of_next(model::TokenId id);

 private:
  const model::Tokenizer& tokenizer_;
  model::Detokenizer text_;
  size_t characters_ = 0;  // of the tokens before
};

OrderedJson usage_json(const Usage& usage);
// The whole answer of a call that does not stream.
OrderedJson response_json(const CallInfo& call, const std::vector<Choice>& choices, const Usage& usage,
                          const model::Tokenizer& tokenizer);
// One chunk of a stream: what is new in choice `index`. `first`: a chat's chunk also says the role.
// `offset` is the choice's own and goes on from chunk to chunk.
OrderedJson chunk_json(const CallInfo& call, int index, const Choice& piece, bool first, TextOffset& offset,
                       const model::Tokenizer& tokenizer);
// The chunk after the last: no choice, only figures.
OrderedJson usage_chunk_json(const CallInfo& call, const Usage& usage);

// Text as it goes over the wire; ill-formed UTF-8 is replaced.
std::string to_wire(const OrderedJson& json);

}  // namespace flywheel::serve
