#include "serve/openai_request.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/config.h"

namespace flywheel::serve {
namespace {

constexpr int64_t kMaxChoices = 128, kMaxTopLogprobs = 20, kMaxStops = 16, kMaxPrompts = 2048;

[[noreturn]] void refuse(const std::string& field, const std::string& what) {
  throw ApiError(400, what, field);
}

// The fields of one JSON object, each taken once; done() refuses what is left.
class Fields {
 public:
  Fields(const OrderedJson& object, std::string prefix = "") : object_(object), prefix_(std::move(prefix)) {}

  // null counts as absent, as the official clients send it.
  const OrderedJson* take(const std::string& name) {
    known_.push_back(name);
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  double number(const std::string& name, double fallback, double low, double high) {
    const OrderedJson* value = take(name);
    if (value == nullptr) return fallback;
    if (!value->is_number()) refuse(prefix_ + name, "'" + prefix_ + name + "' must be a number");
    const auto v = value->get<double>();
    if (!(v >= low && v <= high)) {
      refuse(prefix_ + name,
             fmt::format("'{}{}' must be from {} to {}, not {}", prefix_, name, low, high, v));
    }
    return v;
  }
  std::optional<int64_t> integer(const std::string& name, int64_t low, int64_t high) {
    const OrderedJson* value = take(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_integer()) refuse(prefix_ + name, "'" + prefix_ + name + "' must be an integer");
    const bool too_large =
        value->is_number_unsigned() &&
        value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    const int64_t v = too_large ? std::numeric_limits<int64_t>::max() : value->get<int64_t>();
    if (v < low || v > high) {
      refuse(prefix_ + name,
             fmt::format("'{}{}' must be from {} to {}, not {}", prefix_, name, low, high, v));
    }
    return v;
  }
  bool boolean(const std::string& name, bool fallback) {
    const OrderedJson* value = take(name);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) refuse(prefix_ + name, "'" + prefix_ + name + "' must be true or false");
    return value->get<bool>();
  }
  std::optional<std::string> text(const std::string& name) {
    const OrderedJson* value = take(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(prefix_ + name, "'" + prefix_ + name + "' must be a string");
    return value->get<std::string>();
  }
  // Accepted for compatibility; it changes no token.
  void informative(const std::string& name) { (void)take(name); }
  // Documented by OpenAI, not done here: any value but `harmless` is refused.
  void unsupported(const std::string& name, const OrderedJson& harmless = nullptr) {
    const OrderedJson* value = take(name);
    if (value != nullptr && *value != harmless && !(value->is_array() && value->empty())) {
      refuse(name, "'" + name + "' is not supported by this server");
    }
  }
  void done() const {
    for (const auto& [name, value] : object_.items()) {
      if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
      const std::string near = nearest_name(name, known_);
      refuse(prefix_ + name, "Unrecognized request argument: " + prefix_ + name +
                                 (near.empty() ? "" : "; did you mean " + prefix_ + near + "?"));
    }
  }

 private:
  const OrderedJson& object_;
  std::string prefix_;
  std::vector<std::string> known_;
};

int32_t token_id(const OrderedJson& value, const std::string& field) {
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > INT32_MAX) {
    refuse(field, "'" + field + "' must hold token ids");
  }
  return value.get<int32_t>();
}

GenerationFields read_generation(Fields& fields) {
  GenerationFields g;
  const auto model = fields.text("model");
  if (!model) refuse("model", "you must provide a model parameter");
  g.model = *model;
  g.temperature = fields.number("temperature", 1, 0, 2);
  g.top_p = fields.number("top_p", 1, 0, 1);
  g.min_p = fields.number("min_p", 0, 0, 1);
  g.top_k = std::max<int64_t>(0, fields.integer("top_k", -1, INT32_MAX).value_or(0));
  g.repetition_penalty = fields.number("repetition_penalty", 1, 0.01, 100);
  g.presence_penalty = fields.number("presence_penalty", 0, -2, 2);
  g.frequency_penalty = fields.number("frequency_penalty", 0, -2, 2);
  g.n = fields.integer("n", 1, kMaxChoices).value_or(1);
  g.stream = fields.boolean("stream", false);
  g.ignore_eos = fields.boolean("ignore_eos", false);
  if (const auto seed =
          fields.integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max())) {
    g.seed = static_cast<uint64_t>(*seed);
  }
  if (const OrderedJson* bias = fields.take("logit_bias")) {
    if (!bias->is_object()) refuse("logit_bias", "'logit_bias' must map token ids to numbers");
    for (const auto& [key, value] : bias->items()) {
      int32_t token = -1;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
      if (error != std::errc() || end != key.data() + key.size() || token < 0) {
        refuse("logit_bias", "'logit_bias': \"" + key + "\" is not a token id");
      }
      if (!value.is_number() || std::abs(value.get<double>()) > 100) {
        refuse("logit_bias", "'logit_bias': the value of " + key + " must be from -100 to 100");
      }
      g.logit_bias[token] = value.get<double>();
    }
  }
  if (const OrderedJson* stop = fields.take("stop")) {
    const OrderedJson list = stop->is_array() ? *stop : OrderedJson::array({*stop});
    if (list.size() > kMaxStops) refuse("stop", fmt::format("'stop' takes at most {} strings", kMaxStops));
    for (const auto& one : list) {
      if (!one.is_string() || one.get<std::string>().empty()) {
        refuse("stop", "'stop' must be a string that is not empty, or a list of such");
      }
      g.stop.push_back(one.get<std::string>());
    }
  }
  if (const OrderedJson* ids = fields.take("stop_token_ids")) {
    if (!ids->is_array()) refuse("stop_token_ids", "'stop_token_ids' must be a list of token ids");
    for (const auto& id : *ids) g.stop_token_ids.push_back(token_id(id, "stop_token_ids"));
  }
  if (const OrderedJson* options = fields.take("stream_options")) {
    if (!g.stream) refuse("stream_options", "'stream_options' is allowed only with stream: true");
    if (!options->is_object()) refuse("stream_options", "'stream_options' must be an object");
    Fields inner(*options, "stream_options.");
    g.include_usage = inner.boolean("include_usage", false);
    inner.informative("include_obfuscation");
    inner.done();
  }
  for (const char* name :
       {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}) {
    fields.informative(name);
  }
  return g;
}

OrderedJson parse_object(std::string_view body) {
  auto parsed = parse_ordered_json(body, 64);
  if (!parsed.ok()) throw ApiError(400, "the request body is " + parsed.error().message);
  if (!parsed->is_object()) throw ApiError(400, "the request body must be a JSON object");
  return std::move(parsed).value();
}

std::vector<Prompt> read_prompts(const OrderedJson* prompt) {
  if (prompt == nullptr) refuse("prompt", "you must provide a prompt");
  const auto one = [](const OrderedJson& value) {
    Prompt p;
    if (value.is_string()) {
      p.text = value.get<std::string>();
    } else if (value.is_array() && !value.empty()) {
      p.is_tokens = true;
      for (const auto& id : value) p.tokens.push_back(token_id(id, "prompt"));
    } else {
      refuse("prompt",
             "'prompt' must be a string, a list of strings, of token ids, or of lists of token ids");
    }
    return p;
  };
  const bool many = prompt->is_array() && !prompt->empty() && !(*prompt)[0].is_number();
  if (!many) return {one(*prompt)};
  if (prompt->size() > kMaxPrompts)
    refuse("prompt", fmt::format("'prompt' takes at most {} prompts", kMaxPrompts));
  std::vector<Prompt> out;
  for (const auto& value : *prompt) out.push_back(one(value));
  return out;
}

// Content may be a list of parts; text parts are joined, others are not for a text model.
std::string content_text(const OrderedJson& content, const std::string& field) {
  if (content.is_null()) return "";
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) refuse(field, "'" + field + "' must be a string or a list of parts");
  std::string text;
  for (const auto& part : content) {
    const auto string_of = [&part](const char* key) -> const std::string* {
      const auto it = part.is_object() ? part.find(key) : part.end();
      return it == part.end() || !it->is_string() ? nullptr : &it->get_ref<const std::string&>();
    };
    const std::string *type = string_of("type"), *part_text = string_of("text");
    if (type == nullptr || *type != "text" || part_text == nullptr) {
      refuse(field, "'" + field + "': only parts of type text, with a string as text, are supported");
    }
    text += *part_text;
  }
  return text;
}

OrderedJson read_messages(const OrderedJson* messages) {
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    refuse("messages", "'messages' must be a list with at least one message");
  }
  static const std::vector<std::string> roles = {"system",    "developer", "user",
                                                 "assistant", "tool",      "function"};
  OrderedJson out = OrderedJson::array();
  for (size_t i = 0; i < messages->size(); ++i) {
    const std::string field = "messages[" + std::to_string(i) + "]";
    OrderedJson message = (*messages)[i];
    if (!message.is_object()) refuse(field, "'" + field + "' must be an object");
    const bool has_role = message.contains("role") && message["role"].is_string();
    if (!has_role ||
        std::find(roles.begin(), roles.end(), message["role"].get<std::string>()) == roles.end()) {
      refuse(field + ".role", "'" + field + ".role' must be one of system, developer, user, assistant, tool");
    }
    if (message["role"] == "developer") message["role"] = "system";  // the newer name of the same thing
    const bool calls = message.contains("tool_calls") && !message["tool_calls"].is_null();
    if (!message.contains("content") && !calls) refuse(field + ".content", "'" + field + "' has no content");
    message["content"] = content_text(message.value("content", OrderedJson(nullptr)), field + ".content");
    out.push_back(std::move(message));
  }
  return out;
}

}  // namespace

CompletionRequest parse_completion_request(std::string_view body) {
  const OrderedJson object = parse_object(body);
  Fields fields(object);
  CompletionRequest request;
  request.generation = read_generation(fields);
  request.prompts = read_prompts(fields.take("prompt"));
  request.echo = fields.boolean("echo", false);
  // With echo none at all: what the prompt is worth is asked for.
  request.generation.max_tokens = fields.integer("max_tokens", request.echo ? 0 : 1, INT32_MAX);
  if (const auto logprobs = fields.integer("logprobs", 0, kMaxTopLogprobs)) {
    request.generation.logprobs = true;
    request.generation.top_logprobs = *logprobs;
  }
  if (const auto best_of = fields.integer("best_of", 1, kMaxChoices);
      best_of && *best_of != request.generation.n) {
    refuse("best_of", "'best_of' is supported only where it equals n");
  }
  fields.unsupported("suffix", "");
  fields.done();
  return request;
}

ChatRequest parse_chat_request(std::string_view body) {
  const OrderedJson object = parse_object(body);
  Fields fields(object);
  ChatRequest request;
  request.generation = read_generation(fields);
  request.messages = read_messages(fields.take("messages"));
  request.generation.max_tokens = fields.integer("max_completion_tokens", 1, INT32_MAX);
  const auto old_name = fields.integer("max_tokens", 1, INT32_MAX);
  if (!request.generation.max_tokens) request.generation.max_tokens = old_name;
  request.generation.logprobs = fields.boolean("logprobs", false);
  if (const auto top = fields.integer("top_logprobs", 0, kMaxTopLogprobs)) {
    if (!request.generation.logprobs) refuse("top_logprobs", "'top_logprobs' needs logprobs: true");
    request.generation.top_logprobs = *top;
  }
  request.add_generation_prompt = fields.boolean("add_generation_prompt", true);
  if (const OrderedJson* extra = fields.take("chat_template_kwargs")) {
    if (!extra->is_object()) refuse("chat_template_kwargs", "'chat_template_kwargs' must be an object");
    request.chat_template_kwargs = *extra;
  }
  fields.unsupported("tools");
  fields.unsupported("tool_choice", "none");
  fields.unsupported("parallel_tool_calls", true);
  fields.unsupported("functions");
  fields.unsupported("function_call", "none");
  fields.unsupported("response_format", OrderedJson{{"type", "text"}});
  fields.unsupported("modalities", OrderedJson::array({"text"}));
  fields.unsupported("audio");
  fields.unsupported("prediction");
  fields.unsupported("web_search_options");
  fields.unsupported("reasoning_effort");
  fields.unsupported("verbosity");
  fields.done();
  return request;
}

}  // namespace flywheel::serve
