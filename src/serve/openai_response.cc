#include "serve/openai_response.h"

#include <algorithm>

#include "model/unicode.h"

namespace flywheel::serve {
namespace {

OrderedJson object_head(const CallInfo& call, bool chunk) {
  const char* kind = call.api == Api::kCompletions ? "text_completion"
                     : chunk                       ? "chat.completion.chunk"
                                                   : "chat.completion";
  return {{"id", call.id}, {"object", kind}, {"created", call.created_s}, {"model", call.model}};
}

OrderedJson or_null(const std::string& text) {
  return text.empty() ? OrderedJson(nullptr) : OrderedJson(text);
}

OrderedJson bytes_json(const std::string& bytes) {
  OrderedJson list = OrderedJson::array();
  for (const char byte : bytes) list.push_back(static_cast<uint8_t>(byte));
  return list;
}

OrderedJson chat_logprobs(const std::vector<engine::GeneratedToken>& tokens, const CallInfo& call,
                          const model::Tokenizer& tokenizer) {
  OrderedJson content = OrderedJson::array();
  const auto entry = [&](model::TokenId id, float logprob) {
    const std::string bytes = tokenizer.token_bytes(id);
    return OrderedJson{{"token", bytes}, {"logprob", logprob}, {"bytes", bytes_json(bytes)}};
  };
  for (const auto& token : tokens) {
    OrderedJson one = entry(token.id, token.logprob);
    one["top_logprobs"] = OrderedJson::array();
    for (const auto& top : token.top) {
      if (static_cast<int64_t>(one["top_logprobs"].size()) == call.top_logprobs) break;
      one["top_logprobs"].push_back(entry(top.id, top.logprob));
    }
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

// A token as /v1/completions writes it: its text, or "bytes:\xe3\x81" for what is no whole character. Parts
// of different characters stay different that way, also as keys.
std::string token_name(const std::string& bytes) {
  if (model::is_valid_utf8(bytes)) return bytes;
  std::string name = "bytes:";
  for (const char c : bytes) {
    const bool printable = c >= ' ' && c <= '~';
    name += printable ? std::string(1, c) : fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
  }
  return name;
}

OrderedJson completion_logprobs(const Choice& choice, const CallInfo& call, TextOffset& offset,
                                const model::Tokenizer& tokenizer) {
  OrderedJson out = {{"text_offset", OrderedJson::array()},
                     {"token_logprobs", OrderedJson::array()},
                     {"tokens", OrderedJson::array()},
                     {"top_logprobs", OrderedJson::array()}};
  for (size_t i = 0; i < choice.tokens.size(); ++i) {
    const engine::GeneratedToken& token = choice.tokens[i];
    out["text_offset"].push_back(offset.of_next(token.id));
    out["tokens"].push_back(token_name(tokenizer.token_bytes(token.id)));
    if (i == 0 && choice.from_beginning) {  // nothing stands before it
      out["token_logprobs"].push_back(nullptr);
      out["top_logprobs"].push_back(nullptr);
      continue;
    }
    out["token_logprobs"].push_back(token.logprob);
    OrderedJson tops = OrderedJson::object();
    for (const auto& top : token.top) {
      if (static_cast<int64_t>(tops.size()) == call.top_logprobs) break;
      tops.emplace(token_name(tokenizer.token_bytes(top.id)), top.logprob);  // of two alike the likelier
    }
    out["top_logprobs"].push_back(std::move(tops));
  }
  return out;
}

OrderedJson logprobs_json(const CallInfo& call, const Choice& choice, TextOffset& offset,
                          const model::Tokenizer& tokenizer) {
  if (!call.logprobs) return nullptr;
  if (call.api == Api::kChat) return chat_logprobs(choice.tokens, call, tokenizer);
  return completion_logprobs(choice, call, offset, tokenizer);
}

}  // namespace

size_t TextOffset::of_next(model::TokenId id) {
  const size_t before = characters_;
  characters_ += model::count_code_points(text_.push(id));
  const std::string bytes = tokenizer_.token_bytes(id);
  const bool goes_on = !bytes.empty() && (static_cast<uint8_t>(bytes.front()) & 0xc0) == 0x80;
  if (goes_on) return before;
  // A character that was begun before and never ended came out together with this token, and stands before
  // it.
  const std::string whole =
      model::repair_utf8(bytes.substr(0, bytes.size() - model::incomplete_utf8_tail(bytes)));
  const size_t own = model::count_code_points(whole);
  return characters_ > before + own ? characters_ - own : before;
}

OrderedJson usage_json(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

OrderedJson response_json(const CallInfo& call, const std::vector<Choice>& choices, const Usage& usage,
                          const model::Tokenizer& tokenizer) {
  OrderedJson out = object_head(call, false);
  out["choices"] = OrderedJson::array();
  for (size_t i = 0; i < choices.size(); ++i) {
    OrderedJson choice = {{"index", i}};
    if (call.api == Api::kChat) {
      choice["message"] = {{"role", "assistant"}, {"content", choices[i].text}, {"refusal", nullptr}};
    } else {
      choice["text"] = choices[i].text;
    }
    TextOffset offset(tokenizer);
    choice["logprobs"] = logprobs_json(call, choices[i], offset, tokenizer);
    choice["finish_reason"] = or_null(choices[i].finish_reason);
    out["choices"].push_back(std::move(choice));
  }
  out["usage"] = usage_json(usage);
  return out;
}

OrderedJson chunk_json(const CallInfo& call, int index, const Choice& piece, bool first, TextOffset& offset,
                       const model::Tokenizer& tokenizer) {
  OrderedJson out = object_head(call, true);
  OrderedJson choice = {{"index", index}};
  if (call.api == Api::kChat) {
    OrderedJson delta = OrderedJson::object();
    if (first) delta["role"] = "assistant";
    if (first || !piece.text.empty()) delta["content"] = piece.text;
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = piece.text;
  }
  choice["logprobs"] =
      piece.tokens.empty() ? OrderedJson(nullptr) : logprobs_json(call, piece, offset, tokenizer);
  choice["finish_reason"] = or_null(piece.finish_reason);
  out["choices"] = OrderedJson::array({std::move(choice)});
  if (call.stream_usage) out["usage"] = nullptr;
  return out;
}

OrderedJson usage_chunk_json(const CallInfo& call, const Usage& usage) {
  OrderedJson out = object_head(call, true);
  out["choices"] = OrderedJson::array();
  out["usage"] = usage_json(usage);
  return out;
}

std::string to_wire(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

}  // namespace flywheel::serve
