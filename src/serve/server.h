// The server: models, the OpenAI API, keys, health and metrics, on one address.
//
//   GET  /health                 200 while every engine can be expected to answer, else 503 with the reason
//   GET  /metrics                Prometheus
//   GET  /v1/models[/NAME]       POST /v1/completions, /v1/chat/completions
//
// With api_keys set, everything under /v1/ needs "Authorization: Bearer KEY"; keys are visible ASCII without
// spaces. Ownership: owns engines and sockets. Threads: any.
//
//   Server server(config);
//   server.start().value();
//   server.drain(Deadline::after_ms(30'000));
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "serve/http_server.h"

namespace flywheel::serve {

struct ServerConfig {
  HttpServerConfig http;
  std::vector<engine::EngineConfig> models;
  // Empty: no key is asked for, which is for loopback only. By their name no message repeats them
  // (config.cc).
  std::vector<std::string> api_keys;
  int64_t drain_ms = 30'000;  // how long SIGTERM waits for answers under way
  template <typename V>
  void fields(V& v) {
    v("http", http), v("models", models), v("api_keys", api_keys), v("drain_ms", drain_ms);
  }
};

// UserError for settings out of range, naming the key: "http.threads", "models[1].max_running".
void check(const ServerConfig& config);

class Server {
 public:
  explicit Server(ServerConfig config);
  ~Server();  // drains for a second
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // check(), takes the address, loads the models, then listens. UserError for an address other than loopback
  // without keys, and for what a model's settings get wrong.
  Result<void> start();
  int port() const;
  std::string url() const;  // "http://127.0.0.1:8000"; an IPv6 address stands in brackets
  std::vector<std::string> model_names() const;
  // Lets answers under way end until the deadline; the others then end with a 503 (or an error event in their
  // stream). Engines and connections have stopped when it returns.
  void drain(Deadline deadline);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace flywheel::serve
