// The server's insides: what its threads share (http_server.cc) and one connection (http_connection.cc).
//
// Ownership: a connection lives as long as its coroutine; the server's set only knows of it.
// Threads: a connection runs on its own strand; State's plain members are set before threads start.
#pragma once

#include "serve/http_server.h"

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

namespace flywheel::serve {
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

inline auto into(error_code& error) {
  return asio::redirect_error(asio::use_awaitable, error);
}

// flywheel_serve_requests_total: every answer, those too that no handler gave.
void count_answer(int status);

class HttpConnection;

struct HttpServer::State : std::enable_shared_from_this<HttpServer::State> {
  HttpServerConfig config;
  HttpHandler handler;
  asio::io_context io;
  tcp::acceptor acceptor{io};
  std::vector<std::thread> threads;
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> keep_running;
  int port = 0;
  std::atomic<bool> draining{false};
  std::atomic<int64_t> connections{0}, busy{0};
  std::mutex mutex;
  std::set<HttpConnection*> open;  // under mutex

  asio::awaitable<void> accept_loop();
  void run(Deadline deadline);
  void close_all(bool at_once);
};

class HttpConnection : public HttpExchange, public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(tcp::socket socket, std::shared_ptr<HttpServer::State> server)
      : stream_(std::move(socket)), server_(std::move(server)) {
    ++server_->connections;
    const std::lock_guard lock(server_->mutex);
    server_->open.insert(this);
  }
  ~HttpConnection() override {
    {
      const std::lock_guard lock(server_->mutex);
      server_->open.erase(this);
    }
    --server_->connections;
  }

  asio::awaitable<void> run();
  // From another thread: close when no request is under way, or at once.
  void close_soon(bool at_once) {
    asio::post(stream_.get_executor(), [self = shared_from_this(), at_once] {
      if (at_once || !self->in_request_) self->close();
    });
  }

  const HttpRequest& request() const override { return request_; }
  asio::any_io_executor executor() const override {
    return const_cast<beast::tcp_stream&>(stream_).get_executor();
  }
  asio::awaitable<void> reply(int status, std::string content_type, std::string body,
                              HttpHeaders headers) override;
  asio::awaitable<bool> begin_stream(int status, std::string content_type, HttpHeaders headers) override;
  asio::awaitable<bool> write(std::string piece) override;
  asio::awaitable<void> end_stream() override;
  bool client_gone() override;

 private:
  using Parser = http::request_parser<http::string_body>;
  asio::awaitable<bool> read_request();
  asio::awaitable<void> refuse(int status, std::string message);
  std::string take_request(Parser& parser);
  asio::awaitable<void> linger();
  void close() {
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.close();
    gone_ = true;
  }
  template <typename Message>
  void fill(Message& message, const std::string& content_type, const HttpHeaders& headers);

  beast::tcp_stream stream_;
  std::shared_ptr<HttpServer::State> server_;
  beast::flat_buffer buffer_;
  HttpRequest request_;
  unsigned version_ = 11;
  bool keep_alive_ = true, in_request_ = false, answered_ = false, gone_ = false, chunked_ = true;
};

}  // namespace flywheel::serve
