#include "serve/http_server.h"

#include <netinet/tcp.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <utility>

#include "base/log.h"
#include "base/posix.h"
#include "serve/api_error.h"
#include "serve/http_server_internal.h"

namespace flywheel::serve {
namespace {

// How long closed connections' handlers may take to notice and return: they may be in a prompt's tokenizing.
constexpr int64_t kLetGoMs = 5000;
// How long the handlers of what is closed then may take.
constexpr int64_t kLastHandlersMs = 1000;

}  // namespace

asio::awaitable<void> HttpServer::State::accept_loop() {
  const auto self = shared_from_this();
  for (bool said = false; !draining;) {
    error_code error;
    tcp::socket socket(asio::make_strand(io));
    co_await acceptor.async_accept(socket, into(error));
    if (error == asio::error::operation_aborted || !acceptor.is_open()) break;
    if (error) {  // out of descriptors, most likely: wait for some to come back
      if (!std::exchange(said, true)) LOG_WARN("accept: {}; tried again every 50 ms", error.message());
      asio::steady_timer pause(io, std::chrono::milliseconds(50));
      co_await pause.async_wait(into(error));
      continue;
    }
    said = false;
    socket.set_option(tcp::no_delay(true), error);
    if (connections >= config.max_connections) {
      const std::string body = ApiError(503, "too many connections").body();
      const std::string text = fmt::format(
          "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
          "Connection: close\r\nContent-Length: {}\r\n\r\n{}",
          body.size(), body);
      socket.non_blocking(true, error);
      socket.write_some(asio::buffer(text), error);
      count_answer(503);
      continue;
    }
    auto executor = socket.get_executor();
    auto connection = std::make_shared<HttpConnection>(std::move(socket), self);
    asio::co_spawn(
        executor, [connection] { return connection->run(); }, asio::detached);
  }
}

// Handlers, until there is nothing more to wait for, the context is stopped or the time is over.
void HttpServer::State::run(Deadline deadline) {
  for (;;) {
    try {
      if (deadline.is_never()) {
        io.run();
      } else {
        io.run_until(deadline.at());
      }
      return;
    } catch (const std::exception& error) {
      LOG_ERROR("server thread: {}", error.what());
    }
  }
}

HttpServer::HttpServer(const HttpServerConfig& config, HttpHandler handler)
    : state_(std::make_shared<State>()) {
  state_->config = config;
  state_->handler = std::move(handler);
}

HttpServer::~HttpServer() {
  drain(Deadline::after_ms(1000));
}

Result<void> HttpServer::bind() {
  State& s = *state_;
  if (s.acceptor.is_open()) return {};
  if (s.config.port < 0 || s.config.port > 65'535) {
    throw UserError("http.port", fmt::format("{} is not a port", s.config.port), "0 (any free one) to 65535");
  }
  error_code error;
  const auto address =
      asio::ip::make_address(s.config.host == "localhost" ? "127.0.0.1" : s.config.host, error);
  if (error)
    throw UserError("http.host", "\"" + s.config.host + "\" is not an address", "for instance 127.0.0.1");
  const tcp::endpoint endpoint(address, static_cast<uint16_t>(s.config.port));
  s.acceptor.open(endpoint.protocol(), error);
  if (!error) s.acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) s.acceptor.bind(endpoint, error);
  if (!error) {
    s.port = s.acceptor.local_endpoint().port();
    return {};
  }
  error_code ignored;
  s.acceptor.close(ignored);
  return make_error(ErrorCode::kUnavailable, "cannot listen on {}:{}: {}", s.config.host, s.config.port,
                    error.message());
}

Result<void> HttpServer::start() {
  State& s = *state_;
  RETURN_IF_ERROR(bind());
  RETURN_IF_ERROR(allow_open_files());  // one descriptor a stream
  error_code error;
  s.acceptor.listen(4096, error);
  if (error) {
    return make_error(ErrorCode::kUnavailable, "cannot listen on {}:{}: {}", s.config.host, s.config.port,
                      error.message());
  }
  s.keep_running.emplace(s.io.get_executor());
  asio::co_spawn(
      s.io, [state = state_] { return state->accept_loop(); }, asio::detached);
  for (int i = 0; i < std::max(1, s.config.threads); ++i) {
    s.threads.emplace_back([state = state_.get()] { state->run(Deadline::never()); });
  }
  return {};
}

int HttpServer::port() const {
  return state_->port;
}

// Closes connections, those of requests under way too where `at_once`.
void HttpServer::State::close_all(bool at_once) {
  std::vector<std::shared_ptr<HttpConnection>> alive;  // let go of outside the lock: the last one destroys
  {
    const std::lock_guard lock(mutex);
    for (HttpConnection* connection : open) {
      if (auto one = connection->weak_from_this().lock()) alive.push_back(std::move(one));
    }
  }
  for (const auto& connection : alive) connection->close_soon(at_once);
}

bool HttpServer::finish(Deadline deadline) {
  State& s = *state_;
  if (s.threads.empty()) return true;
  s.draining = true;
  asio::post(s.io, [state = state_] {
    error_code ignored;
    state->acceptor.close(ignored);
  });
  s.close_all(false);
  while (s.connections > 0 && !deadline.expired()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    s.close_all(false);
  }
  return s.connections == 0;
}

void HttpServer::drain(Deadline deadline) {
  State& s = *state_;
  if (s.threads.empty()) return;
  finish(deadline);
  s.close_all(true);
  const Deadline last = Deadline::after_ms(kLetGoMs);
  while (s.connections > 0 && !last.expired()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  if (s.connections > 0) LOG_WARN("{} requests have not ended with their connections", s.connections.load());
  s.keep_running.reset();
  s.io.stop();
  for (auto& thread : s.threads) thread.join();
  s.threads.clear();
  // What has ended but not yet been run to its end holds the State, which holds it.
  s.io.restart();
  s.run(Deadline::after_ms(kLastHandlersMs));
}

}  // namespace flywheel::serve
