#include "serve/openai_api.h"

#include <chrono>
#include <map>
#include <random>

#include "base/deadline.h"
#include "base/log.h"
#include "serve/generation.h"
#include "serve/offload.h"
#include "serve/openai_request.h"
#include "serve/openai_response.h"

namespace flywheel::serve {
namespace {

constexpr const char* kJson = "application/json";
constexpr int64_t kDefaultCompletionTokens = 16;  // OpenAI's default for /v1/completions
constexpr size_t kMostInOneWrite = 64 << 10;      // each has its own deadline, which a slow reader must meet

int64_t now_s() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Not a secret, only unlikely to repeat.
std::string new_id(const char* prefix) {
  thread_local std::mt19937_64 source{std::random_device{}()};
  return fmt::format("{}-{:016x}{:08x}", prefix, source(), static_cast<uint32_t>(source()));
}

engine::GenerationRequest to_engine(const GenerationFields& fields, std::vector<model::TokenId> prompt) {
  engine::GenerationRequest request;
  request.prompt = std::move(prompt);
  auto& s = request.sampling;
  s.temperature = static_cast<float>(fields.temperature);
  s.top_p = static_cast<float>(fields.top_p);
  s.top_k = static_cast<int>(fields.top_k);
  s.min_p = static_cast<float>(fields.min_p);
  s.repetition_penalty = static_cast<float>(fields.repetition_penalty);
  s.presence_penalty = static_cast<float>(fields.presence_penalty);
  s.frequency_penalty = static_cast<float>(fields.frequency_penalty);
  for (const auto& [token, bias] : fields.logit_bias) s.logit_bias[token] = static_cast<float>(bias);
  s.seed = fields.seed;
  request.max_tokens = fields.max_tokens;
  request.stop = fields.stop;
  request.stop_tokens = fields.stop_token_ids;
  request.ignore_end_tokens = fields.ignore_eos;
  request.n = static_cast<int>(fields.n);
  if (fields.logprobs) request.logprobs = static_cast<int>(fields.top_logprobs);
  return request;
}

CallInfo call_info(Api api, const GenerationFields& fields) {
  return {.api = api,
          .id = new_id(api == Api::kChat ? "chatcmpl" : "cmpl"),
          .model = fields.model,
          .created_s = now_s(),
          .logprobs = fields.logprobs,
          .top_logprobs = fields.top_logprobs,
          .stream_usage = fields.include_usage};
}

void check_context(const ServedModel& served, const std::vector<model::TokenId>& prompt,
                   const GenerationFields& fields, const char* field) {
  const int64_t limit = served.engine->max_context_tokens(), length = static_cast<int64_t>(prompt.size());
  if (prompt.empty()) throw ApiError(400, std::string("'") + field + "' has no token", field);
  if (length + fields.max_tokens.value_or(1) > limit) {
    throw ApiError(
        400,
        fmt::format("This model's maximum context length is {} tokens. However, you requested {} tokens "
                    "({} in the {}, {} in the completion). Please reduce the length.",
                    limit, length + fields.max_tokens.value_or(1), length, field,
                    fields.max_tokens.value_or(1)),
        field, "context_length_exceeded");
  }
}

// More sequences than the queue holds never fit into it: to wait would not help.
void check_sequences(const ServedModel& served, int64_t prompts, int64_t n) {
  const int64_t most = served.engine->max_waiting();
  if (prompts * n <= most) return;
  const char* field = prompts > 1 ? "prompt" : "n";
  throw ApiError(400,
                 fmt::format("'{}' asks for {} sequences; this server takes at most {} in one request (its "
                             "max_waiting)",
                             field, prompts * n, most),
                 field);
}

// The engine's kInvalid begins with the engine's name of the field ("stop_tokens: ..."); a client knows the
// API's.
ApiError refused_by_engine(const Error& error, Api api) {
  const size_t colon = error.message.find(": ");
  if (error.code != ErrorCode::kInvalid || colon == std::string::npos) return ApiError::from(error);
  std::string field = error.message.substr(0, colon);
  if (field == "stop_tokens") field = "stop_token_ids";
  if (api == Api::kChat && field == "prompt") field = "messages";
  if (api == Api::kChat && field == "logprobs") field = "top_logprobs";
  return ApiError(400, "'" + field + "'" + error.message.substr(colon), field);
}

// A call under way: where its events go, as one answer or as a stream.
class Call {
 public:
  Call(HttpExchange& exchange, const ServedModel& served, CallInfo info, std::vector<std::string> echoes)
      : exchange_(exchange),
        tokenizer_(*served.engine->model().tokenizer),
        info_(std::move(info)),
        echoes_(std::move(echoes)),
        generation_(*served.engine, exchange.executor()) {}

  // Several prompts are accepted together or not at all: a refusal ends this call, and with it the others.
  void submit(engine::GenerationRequest request) {
    if (auto accepted = generation_.submit(std::move(request)); !accepted.ok())
      throw refused_by_engine(accepted.error(), info_.api);
  }

  asio::awaitable<void> answer(int64_t choices_per_prompt) {
    std::vector<Choice> choices(static_cast<size_t>(generation_.choices()));
    for (size_t i = 0; i < choices.size(); ++i) choices[i].text = echo_of(i, choices_per_prompt);
    while (!generation_.finished()) {
      auto next = co_await generation_.next();
      if (client_gone()) co_return;  // the generation is cancelled with this object
      if (!next) continue;
      if (auto failure = failure_of(next->event)) throw std::move(*failure);
      count(*next);
      keep_prompt(*next, choices_per_prompt);
      Choice& choice = choices[static_cast<size_t>(next->choice)];
      choice.text += next->event.text;
      for (auto& token : next->event.tokens) choice.tokens.push_back(std::move(token));
      if (next->event.finish) choice.finish_reason = engine::finish_reason_name(*next->event.finish);
    }
    for (size_t i = 0; i < choices.size(); ++i) begin_with_prompt(choices[i], i, choices_per_prompt);
    co_await exchange_.reply(200, kJson, to_wire(response_json(info_, choices, usage_, tokenizer_)));
  }

  asio::awaitable<void> stream(int64_t choices_per_prompt) {
    // The first event is waited for before the status goes out, so that an early failure is a real status.
    auto next = co_await first_event();
    if (!next) co_return;
    HttpHeaders headers = {{"Cache-Control", "no-cache"}};  // named: GCC 12 refuses it inside co_await
    if (!co_await exchange_.begin_stream(200, "text/event-stream", std::move(headers))) co_return;
    std::vector<Growing> choices;
    for (int i = 0; i < generation_.choices(); ++i) choices.emplace_back(tokenizer_);
    while (next || !generation_.finished()) {
      std::string out;
      for (; next && out.size() < kMostInOneWrite; next = generation_.try_next()) {
        out += chunk(*next, choices[static_cast<size_t>(next->choice)], choices_per_prompt);
      }
      if (!next && generation_.finished()) {
        if (info_.stream_usage) out += event(usage_chunk_json(info_, usage_));
        out += "data: [DONE]\n\n";
      }
      if (!co_await exchange_.write(std::move(out)) || client_gone()) co_return;
      while (!next && !generation_.finished()) {
        next = co_await generation_.next();
        if (client_gone()) co_return;
      }
    }
    co_await exchange_.end_stream();
  }

 private:
  static std::string event(const OrderedJson& json) { return "data: " + to_wire(json) + "\n\n"; }

  // A choice while it is streamed.
  struct Growing {
    explicit Growing(const model::Tokenizer& tokenizer) : offset(tokenizer) {}
    bool begun = false;
    TextOffset offset;
  };

  // What the client is sent for one event; may be nothing.
  std::string chunk(ChoiceEvent& next, Growing& choice, int64_t choices_per_prompt) {
    if (const auto failure = failure_of(next.event)) return "data: " + failure->body() + "\n\n";
    count(next);
    keep_prompt(next, choices_per_prompt);
    Choice piece;
    piece.text = std::move(next.event.text), piece.tokens = std::move(next.event.tokens);
    if (next.event.finish) piece.finish_reason = engine::finish_reason_name(*next.event.finish);
    if (!choice.begun) {
      const auto index = static_cast<size_t>(next.choice);
      piece.text = echo_of(index, choices_per_prompt) + piece.text;
      begin_with_prompt(piece, index, choices_per_prompt);
    } else if (piece.text.empty() && piece.tokens.empty() && piece.finish_reason.empty()) {
      return "";
    }
    const bool first = !std::exchange(choice.begun, true);
    return event(chunk_json(info_, next.choice, piece, first, choice.offset, tokenizer_));
  }

  std::string echo_of(size_t choice, int64_t choices_per_prompt) const {
    return echoes_.empty() ? "" : echoes_[choice / static_cast<size_t>(choices_per_prompt)];
  }

  // The scores of a prompt come with the first of its choices, before any event of the others.
  void keep_prompt(ChoiceEvent& next, int64_t choices_per_prompt) {
    if (next.event.prompt.empty()) return;
    prompts_[static_cast<size_t>(next.choice) / static_cast<size_t>(choices_per_prompt)] =
        std::move(next.event.prompt);
  }

  // Puts them before the tokens of a choice that begins with its prompt.
  void begin_with_prompt(Choice& choice, size_t index, int64_t choices_per_prompt) const {
    const auto prompt = prompts_.find(index / static_cast<size_t>(choices_per_prompt));
    if (prompt == prompts_.end()) return;
    choice.tokens.insert(choice.tokens.begin(), prompt->second.begin(), prompt->second.end());
    choice.from_beginning = true;
  }

  asio::awaitable<std::optional<ChoiceEvent>> first_event() {
    for (;;) {
      auto next = co_await generation_.next();
      if (client_gone()) co_return std::nullopt;
      if (!next) continue;
      if (auto failure = failure_of(next->event)) throw std::move(*failure);
      co_return next;
    }
  }

  // One look at the socket each 100 ms, however many events come and also when they never cease.
  bool client_gone() {
    if (since_look_.seconds() < 0.1) return false;
    since_look_.restart();
    return exchange_.client_gone();
  }

  // Why a sequence ended before its time; nothing when it did not.
  static std::optional<ApiError> failure_of(const engine::GenerationEvent& event) {
    if (event.finish == engine::FinishReason::kError) return ApiError(500, event.error);
    // Calls cancel only what they no longer listen to: it was the engine that stopped.
    if (event.finish == engine::FinishReason::kCancelled) {
      return ApiError::from(make_error(ErrorCode::kUnavailable, "the server is shutting down"));
    }
    return std::nullopt;
  }

  void count(const ChoiceEvent& next) {
    if (!next.event.finish) return;
    usage_.completion_tokens += next.event.output_tokens;
    if (next.event.index != 0) return;  // the prompt counts once
    usage_.prompt_tokens += next.event.prompt_tokens;
    usage_.cached_tokens += next.event.cached_tokens;
  }

  HttpExchange& exchange_;
  const model::Tokenizer& tokenizer_;
  CallInfo info_;
  std::vector<std::string> echoes_;
  std::map<size_t, std::vector<engine::GeneratedToken>> prompts_;  // scored, where they are asked for
  Generation generation_;
  Usage usage_;
  Stopwatch since_look_;
};

}  // namespace

std::shared_ptr<ServedModel> OpenaiApi::model_or_404(const std::string& name) const {
  if (auto served = models_.find(name)) return served;
  std::string known;
  for (const auto& one : models_.list()) known += (known.empty() ? "" : ", ") + one->name;
  throw ApiError(
      404, "The model `" + name + "` does not exist; this server has " + (known.empty() ? "none" : known),
      "model", "model_not_found");
}

asio::awaitable<void> OpenaiApi::handle(HttpExchange& exchange) {
  const std::string& path = exchange.request().path;
  const std::string& method = exchange.request().method;
  const auto only = [&](const char* wanted) {
    if (method != wanted) throw ApiError::wrong_method(path, method, wanted);
  };
  if (path == "/v1/models") {
    only("GET");
    co_await list_models(exchange);
  } else if (path.starts_with("/v1/models/")) {
    only("GET");
    co_await show_model(exchange, path.substr(std::string_view("/v1/models/").size()));
  } else if (path == "/v1/completions") {
    only("POST");
    co_await completions(exchange);
  } else if (path == "/v1/chat/completions") {
    only("POST");
    co_await chat_completions(exchange);
  } else {
    throw ApiError(404, "Unknown request URL: " + method + " " + path);
  }
}

namespace {

OrderedJson model_json(const ServedModel& served) {
  return {{"id", served.name},
          {"object", "model"},
          {"created", served.created_s},
          {"owned_by", "flywheel"},
          {"max_model_len", served.engine->max_context_tokens()}};
}

}  // namespace

asio::awaitable<void> OpenaiApi::list_models(HttpExchange& exchange) {
  OrderedJson out = {{"object", "list"}, {"data", OrderedJson::array()}};
  for (const auto& served : models_.list()) out["data"].push_back(model_json(*served));
  co_await exchange.reply(200, kJson, to_wire(out));
}

asio::awaitable<void> OpenaiApi::show_model(HttpExchange& exchange, const std::string& name) {
  co_await exchange.reply(200, kJson, to_wire(model_json(*model_or_404(name))));
}

asio::awaitable<void> OpenaiApi::completions(HttpExchange& exchange) {
  CompletionRequest request = parse_completion_request(exchange.request().body);
  GenerationFields& fields = request.generation;
  const auto served = model_or_404(fields.model);
  const model::Tokenizer& tokenizer = *served->engine->model().tokenizer;
  if (!fields.max_tokens) fields.max_tokens = kDefaultCompletionTokens;
  check_sequences(*served, static_cast<int64_t>(request.prompts.size()), fields.n);
  std::vector<std::string> echoes;
  std::vector<std::vector<model::TokenId>> prompts = co_await offload([&] {
    std::vector<std::vector<model::TokenId>> out;
    for (const Prompt& prompt : request.prompts) {
      out.push_back(prompt.is_tokens ? prompt.tokens : tokenizer.encode(prompt.text));
      if (request.echo)
        echoes.push_back(prompt.is_tokens ? tokenizer.decode(prompt.tokens, true) : prompt.text);
    }
    return out;
  });
  Call call(exchange, *served, call_info(Api::kCompletions, fields), std::move(echoes));
  for (const auto& prompt : prompts) check_context(*served, prompt, fields, "prompt");
  for (auto& prompt : prompts) {
    engine::GenerationRequest to_submit = to_engine(fields, std::move(prompt));
    to_submit.prompt_logprobs = request.echo && fields.logprobs;
    call.submit(std::move(to_submit));
  }
  if (fields.stream) {
    co_await call.stream(fields.n);
  } else {
    co_await call.answer(fields.n);
  }
}

namespace {

std::string render_chat(const ServedModel& served, const ChatRequest& request) {
  const model::Tokenizer& tokenizer = served.engine->tokenizer();
  const auto render = [&](const OrderedJson& kwargs) {
    model::ChatOptions options;
    options.add_generation_prompt = request.add_generation_prompt;
    if (kwargs.is_object()) options.extra = kwargs;
    for (const auto& [name, id] :
         {std::pair("bos_token", tokenizer.bos()), std::pair("eos_token", tokenizer.eos())}) {
      if (id && !options.extra.contains(name)) options.extra[name] = tokenizer.token(*id);
    }
    return served.chat_template->render(request.messages, options);
  };
  auto text = render(request.chat_template_kwargs);
  if (text.ok()) return std::move(text).value();
  // Whose fault it is shows without the client's variables.
  const bool kwargs_fault = !request.chat_template_kwargs.empty() && render(nullptr).ok();
  throw ApiError(400, "the chat template refused: " + text.error().message,
                 kwargs_fault ? "chat_template_kwargs" : "messages");
}

}  // namespace

asio::awaitable<void> OpenaiApi::chat_completions(HttpExchange& exchange) {
  const ChatRequest request = parse_chat_request(exchange.request().body);
  const GenerationFields& fields = request.generation;
  const auto served = model_or_404(fields.model);
  if (!served->chat_template) {
    throw ApiError(400, "the model " + served->name + " has no chat template; use /v1/completions", "model");
  }
  check_sequences(*served, 1, fields.n);
  std::vector<model::TokenId> prompt = co_await offload([&] {
    return served->engine->tokenizer().encode(render_chat(*served, request),
                                              {.add_special = false, .parse_special = true});
  });
  check_context(*served, prompt, fields, "messages");
  Call call(exchange, *served, call_info(Api::kChat, fields), {});
  call.submit(to_engine(fields, std::move(prompt)));
  if (fields.stream) {
    co_await call.stream(fields.n);
  } else {
    co_await call.answer(fields.n);
  }
}

}  // namespace flywheel::serve
