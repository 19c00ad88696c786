#include "serve/server.h"

#include <openssl/crypto.h>
#include <strings.h>

#include <algorithm>
#include <span>

#include "base/config.h"
#include "base/deadline.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/metrics.h"
#include "serve/api_error.h"
#include "serve/openai_api.h"
#include "serve/openai_response.h"
#include "serve/served_model.h"

namespace flywheel::serve {
namespace {

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

struct HttpMetrics {
  Histogram& seconds = Metrics::global().histogram("flywheel_serve_request_seconds",
                                                   "From a request's last byte to its answer's",
                                                   {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100});
};

void check_range(const std::string& key, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    throw UserError(key, fmt::format("{} is not from {} to {}", value, least, most));
}

void check(const HttpServerConfig& http) {
  constexpr int64_t kMostThreads = 1024, kMost = INT32_MAX;
  check_range("http.threads", http.threads, 1, kMostThreads);
  check_range("http.max_body_bytes", http.max_body_bytes, 1, int64_t{1} << 40);
  check_range("http.max_header_bytes", http.max_header_bytes, 256, int64_t{1} << 30);
  check_range("http.max_connections", http.max_connections, 1, kMost);
  check_range("http.header_timeout_ms", http.header_timeout_ms, 1, kMost);
  check_range("http.body_timeout_ms", http.body_timeout_ms, 1, kMost);
  check_range("http.idle_timeout_ms", http.idle_timeout_ms, 1, kMost);
  check_range("http.write_timeout_ms", http.write_timeout_ms, 1, kMost);
}

// What a model is called before it is open.
const std::string& name_of(const engine::EngineConfig& model) {
  return model.served_name.empty() ? model.model : model.served_name;
}

// The engine's kInvalid begins with its key ("max_running: ..."): which of the models is added.
void throw_if_setting(const ServerConfig& config, size_t index, const Error& error) {
  const size_t colon = error.message.find(": ");
  config_internal::Names keys;
  engine::EngineConfig().fields(keys);
  if (error.code != ErrorCode::kInvalid || colon == std::string::npos) return;
  const std::string key = error.message.substr(0, colon);
  if (std::ranges::find(keys.list, key) == keys.list.end()) return;
  throw UserError(
      fmt::format("models[{}].{}", index, key),
      fmt::format("{} (model {})", error.message.substr(colon + 2), name_of(config.models[index])));
}

}  // namespace

void check(const ServerConfig& config) {
  check(config.http);
  check_range("drain_ms", config.drain_ms, 0, INT32_MAX);
  for (size_t i = 0; i < config.models.size(); ++i) {
    if (config.models[i].model.empty())
      throw UserError(fmt::format("models[{}].model", i), "is not set",
                      "name an artifact, a folder or a .gguf file");
    const std::string& name = name_of(config.models[i]);
    const auto before = std::span(config.models).first(i);
    if (std::ranges::find(before, name, name_of) != before.end())  // said before any of them is loaded
      throw UserError(fmt::format("models[{}]", i), name + " is served already",
                      "give one of them another served_name");
    if (const Result<void> right = engine::check(config.models[i]); !right.ok())
      throw_if_setting(config, i, right.error());
  }
  for (const std::string& key : config.api_keys) {
    const bool sendable = std::ranges::all_of(key, [](char c) { return c > ' ' && c < '\x7f'; });
    if (!key.empty() && sendable) continue;
    throw UserError("api_keys", key.empty() ? "a key is empty" : "a key holds spaces or other than ASCII",
                    "nobody could send it: give a key of visible ASCII, or none at all");
  }
}

struct Server::State {
  explicit State(ServerConfig given)
      : config(std::move(given)),
        api(models),
        http(config.http, [this](HttpExchange& exchange) { return handle(exchange); }) {
    // Keys are compared by hash: equal lengths, no early end.
    for (const auto& key : config.api_keys) key_hashes.push_back(sha256_hex(key));
  }

  asio::awaitable<void> handle(HttpExchange& exchange);
  asio::awaitable<void> route(HttpExchange& exchange);
  asio::awaitable<void> health(HttpExchange& exchange);
  void check_key(const HttpRequest& request) const;
  static void check_reads(const HttpRequest& request);

  ServerConfig config;
  std::vector<std::string> key_hashes;
  ModelRegistry models;
  OpenaiApi api;
  HttpMetrics metrics;
  HttpServer http;  // last: its threads end before what they use
};

void Server::State::check_key(const HttpRequest& request) const {
  if (key_hashes.empty()) return;
  const std::string_view header = request.header("authorization");
  const size_t space = std::min(header.find(' '), header.size());
  const size_t key = std::min(header.find_first_not_of(' ', space), header.size());
  const bool bearer = space == 6 && strncasecmp(header.data(), "Bearer", space) == 0;  // RFC 9110, 11.1
  if (!bearer || key == header.size()) {
    throw ApiError(401, "You didn't provide an API key: send it as Authorization: Bearer KEY", "",
                   "invalid_api_key");
  }
  const std::string given = sha256_hex(header.substr(key));
  bool known = false;
  for (const auto& hash : key_hashes) known |= CRYPTO_memcmp(hash.data(), given.data(), hash.size()) == 0;
  if (!known) {
    throw ApiError(401, "Incorrect API key provided: " + redacted(std::string(header.substr(key))), "",
                   "invalid_api_key");
  }
}

void Server::State::check_reads(const HttpRequest& request) {
  if (request.method != "GET" && request.method != "HEAD")
    throw ApiError::wrong_method(request.path, request.method, "GET, HEAD");
}

asio::awaitable<void> Server::State::health(HttpExchange& exchange) {
  OrderedJson out = {{"status", "ok"}, {"models", OrderedJson::object()}};
  for (const auto& served : models.list()) {
    const std::string why = served->engine->why_unhealthy();
    out["models"][served->name] = why.empty() ? "ok" : why;
    if (!why.empty()) out["status"] = "unhealthy";
  }
  co_await exchange.reply(out["status"] == "ok" ? 200 : 503, "application/json", to_wire(out));
}

asio::awaitable<void> Server::State::route(HttpExchange& exchange) {
  const HttpRequest& request = exchange.request();
  if (request.path.starts_with("/v1/")) {
    check_key(request);
    co_await api.handle(exchange);
  } else if (request.path == "/health") {
    check_reads(request);
    co_await health(exchange);
  } else if (request.path == "/metrics") {
    check_reads(request);
    co_await exchange.reply(200, "text/plain; version=0.0.4; charset=utf-8",
                            Metrics::global().prometheus_text());
  } else {
    throw ApiError(404, "Unknown request URL: " + request.method + " " + request.path);
  }
}

asio::awaitable<void> Server::State::handle(HttpExchange& exchange) {
  const Stopwatch clock;
  std::optional<ApiError> failed;
  try {
    co_await route(exchange);
  } catch (const ApiError& error) {
    failed = error;
  } catch (const UserError& error) {
    failed = ApiError(400, error.what());
  }
  const int status = failed ? failed->status : 200;
  if (failed) {
    HttpHeaders headers;
    if (failed->retry_after_s > 0) headers["Retry-After"] = std::to_string(failed->retry_after_s);
    if (status == 401) headers["WWW-Authenticate"] = "Bearer";
    if (!failed->allow.empty()) headers["Allow"] = failed->allow;  // RFC 9110, 15.5.6
    co_await exchange.reply(status, "application/json", failed->body(), headers);
  }
  metrics.seconds.observe(clock.seconds());
  LOG_DEBUG("{} {} {} {:.3f} s", exchange.request().method, exchange.request().path, status, clock.seconds());
}

Server::Server(ServerConfig config) : state_(std::make_unique<State>(std::move(config))) {}
Server::~Server() {
  drain(Deadline::after_ms(1000));
}

Result<void> Server::start() {
  check(state_->config);
  if (!is_loopback(state_->config.http.host) && state_->config.api_keys.empty()) {
    throw UserError("http.host",
                    state_->config.http.host + " can be reached by others, and no API key is asked for",
                    "set api_keys (or --api-key), or bind to 127.0.0.1");
  }
  RETURN_IF_ERROR(state_->http.bind());
  const std::vector<engine::EngineConfig>& models = state_->config.models;
  for (size_t i = 0; i < models.size(); ++i) {
    const Result<void> loaded = state_->models.load(models[i]);
    if (loaded.ok()) continue;
    throw_if_setting(state_->config, i, loaded.error());
    return loaded;
  }
  return state_->http.start();
}

int Server::port() const {
  return state_->http.port();
}

std::string Server::url() const {
  const std::string& host = state_->config.http.host;
  const bool ipv6 = host.find(':') != std::string::npos;
  return fmt::format("http://{}:{}", ipv6 ? "[" + host + "]" : host, port());
}

std::vector<std::string> Server::model_names() const {
  std::vector<std::string> names;
  for (const auto& served : state_->models.list()) names.push_back(served->name);
  return names;
}

void Server::drain(Deadline deadline) {
  state_->http.finish(deadline);
  // Whatever still waits for tokens gets its last event now, and has a second to say so to its client. Also,
  // no engine may compute on when main() returns: its thread pool ends there.
  state_->models.stop();
  state_->http.drain(Deadline::after_ms(1000));
}

}  // namespace flywheel::serve
