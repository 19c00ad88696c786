#include "serve/openai_response.h"

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

OrderedJson completion_logprobs(const std::vector<engine::GeneratedToken>& tokens, const CallInfo& call,
                                size_t text_offset, const model::Tokenizer& tokenizer) {
  OrderedJson out = {{"text_offset", OrderedJson::array()},
                     {"token_logprobs", OrderedJson::array()},
                     {"tokens", OrderedJson::array()},
                     {"top_logprobs", OrderedJson::array()}};
  for (const auto& token : tokens) {
    const std::string text = tokenizer.token_bytes(token.id);
    out["text_offset"].push_back(text_offset);
    out["token_logprobs"].push_back(token.logprob);
    out["tokens"].push_back(text);
    OrderedJson tops = OrderedJson::object();
    for (const auto& top : token.top) {
      if (static_cast<int64_t>(tops.size()) == call.top_logprobs) break;
      tops[tokenizer.token_bytes(top.id)] = top.logprob;
    }
    out["top_logprobs"].push_back(std::move(tops));
    text_offset += text.size();
  }
  return out;
}

OrderedJson logprobs_json(const CallInfo& call, const Choice& choice, size_t text_offset,
                          const model::Tokenizer& tokenizer) {
  if (!call.logprobs) return nullptr;
  if (call.api == Api::kChat) return chat_logprobs(choice.tokens, call, tokenizer);
  return completion_logprobs(choice.tokens, call, text_offset, tokenizer);
}

}  // namespace

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
    choice["logprobs"] = logprobs_json(call, choices[i], 0, tokenizer);
    choice["finish_reason"] = or_null(choices[i].finish_reason);
    out["choices"].push_back(std::move(choice));
  }
  out["usage"] = usage_json(usage);
  return out;
}

OrderedJson chunk_json(const CallInfo& call, int index, const Choice& piece, bool first, size_t text_offset,
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
      piece.tokens.empty() ? OrderedJson(nullptr) : logprobs_json(call, piece, text_offset, tokenizer);
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
