// OpenAI's API over the engine: /v1/models, /v1/completions, /v1/chat/completions.
//
// Reading order: openai_request.h (what comes in), generation.h (the engine's side), openai_response.h (what
// goes out), openai_api.cc (how a call goes).
// Threads: handle() runs on the connection's strand; many at once.
#pragma once

#include "serve/http_server.h"
#include "serve/served_model.h"

namespace flywheel::serve {

class OpenaiApi {
 public:
  explicit OpenaiApi(const ModelRegistry& models) : models_(models) {}

  // Answers paths under /v1/. Throws ApiError for what the client got wrong.
  asio::awaitable<void> handle(HttpExchange& exchange);

 private:
  asio::awaitable<void> list_models(HttpExchange& exchange);
  asio::awaitable<void> show_model(HttpExchange& exchange, const std::string& name);
  asio::awaitable<void> completions(HttpExchange& exchange);
  asio::awaitable<void> chat_completions(HttpExchange& exchange);
  std::shared_ptr<ServedModel> model_or_404(const std::string& name) const;
  const ModelRegistry& models_;
};

}  // namespace flywheel::serve
