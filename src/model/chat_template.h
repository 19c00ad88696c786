// A model's chat template: conversations to the text that the model was trained on.
//
// Templates are programs in the Jinja language which come with models, from anybody. They run here in a
// sandbox of our own: they see the values handed to them and nothing else, change none of them, and stop at
// limits of steps, text, nesting and time. What they print is what Python's jinja2 prints under Transformers'
// settings (docs of apply_chat_template).
//
// Ownership: a ChatTemplate is a handle to an immutable tree; copying it is cheap.
// Threads: render() may be called from any thread.
// Errors: parse() gives kInvalid with the line; render() gives kInvalid with the template's own words where
// it refuses a conversation (raise_exception), else with what went wrong and the line.
//
//   ASSIGN_OR_RETURN(ChatTemplate chat, ChatTemplate::parse(tokenizer.chat_template()));
//   ASSIGN_OR_RETURN(std::string prompt, chat.render(messages, {.tools = tools, .extra = {{"bos_token",
//   "<s>"}}}));
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/deadline.h"
#include "base/json.h"

namespace flywheel::model {

struct ChatOptions {
  OrderedJson tools = nullptr;      // a list of {"type": "function", "function": {...}}, or null
  OrderedJson documents = nullptr;  // for templates that ground answers in texts
  bool add_generation_prompt = true;
  // More variables by name: bos_token, eos_token, enable_thinking, ... They may not be one of the above.
  OrderedJson extra = OrderedJson::object();
  std::optional<std::tm> now = std::nullopt;  // what strftime_now sees; the clock on the wall without it
  int64_t max_steps = 20'000'000;
  size_t max_text_bytes = size_t{64} << 20;
  Deadline deadline = Deadline::after_ms(10'000);
};

class ChatTemplate {
 public:
  static Result<ChatTemplate> parse(std::string_view source);
  // messages: a list of {"role": ..., "content": ...}; keys keep their order where templates print them.
  Result<std::string> render(const OrderedJson& messages, const ChatOptions& options = {}) const;
  // Any template over any variables.
  Result<std::string> render_variables(const OrderedJson& variables, const ChatOptions& options = {}) const;

 private:
  struct Tree;
  std::shared_ptr<const Tree> tree_;
};

}  // namespace flywheel::model
