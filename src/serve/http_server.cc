#include "serve/http_server.h"

#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <mutex>
#include <set>
#include <thread>

#include "base/log.h"
#include "serve/api_error.h"

namespace flywheel::serve {
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

std::string_view HttpRequest::header(const std::string& name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? std::string_view() : std::string_view(it->second);
}

namespace {

auto into(error_code& error) {
  return asio::redirect_error(asio::use_awaitable, error);
}

class Connection;

}  // namespace

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
  std::set<Connection*> open;  // under mutex

  asio::awaitable<void> accept_loop();
};

namespace {

class Connection : public HttpExchange, public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, std::shared_ptr<HttpServer::State> server)
      : stream_(std::move(socket)), server_(std::move(server)) {
    ++server_->connections;
    const std::lock_guard lock(server_->mutex);
    server_->open.insert(this);
  }
  ~Connection() override {
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
  asio::awaitable<void> refuse(int status, const char* message);
  bool take_request(Parser& parser);
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

// What the server says by itself has the form of every other error of the API.
std::string json_error(int status, const std::string& message) {
  return ApiError(status, message).body();
}

template <typename Message>
void Connection::fill(Message& message, const std::string& content_type, const HttpHeaders& headers) {
  message.set(http::field::server, "flywheel");
  message.set(http::field::content_type, content_type);
  for (const auto& [name, value] : headers) message.set(name, value);
  message.keep_alive(keep_alive_ && !server_->draining);
}

asio::awaitable<void> Connection::reply(int status, std::string content_type, std::string body,
                                        HttpHeaders headers) {
  if (answered_ || gone_) co_return;
  answered_ = true;
  http::response<http::string_body> message(static_cast<http::status>(status), version_);
  fill(message, content_type, headers);
  message.content_length(body.size());
  if (request_.method != "HEAD") message.body() = std::move(body);
  stream_.expires_after(std::chrono::milliseconds(server_->config.write_timeout_ms));
  error_code error;
  http::response_serializer<http::string_body> serializer(message);
  if (request_.method == "HEAD") {
    co_await http::async_write_header(stream_, serializer, into(error));
  } else {
    co_await http::async_write(stream_, serializer, into(error));
  }
  if (error) close();
}

asio::awaitable<bool> Connection::begin_stream(int status, std::string content_type, HttpHeaders headers) {
  if (answered_ || gone_) co_return false;
  answered_ = true;
  http::response<http::empty_body> message(static_cast<http::status>(status), version_);
  fill(message, content_type, headers);
  chunked_ = version_ >= 11;
  if (chunked_) {
    message.chunked(true);
  } else {
    keep_alive_ = false;  // HTTP/1.0 knows the end by the connection's
    message.keep_alive(false);
  }
  stream_.expires_after(std::chrono::milliseconds(server_->config.write_timeout_ms));
  error_code error;
  http::response_serializer<http::empty_body> serializer(message);
  co_await http::async_write_header(stream_, serializer, into(error));
  if (error) close();
  co_return !gone_;
}

asio::awaitable<bool> Connection::write(std::string piece) {
  if (gone_) co_return false;
  if (piece.empty()) co_return true;
  if (chunked_) piece = fmt::format("{:x}\r\n", piece.size()) + piece + "\r\n";
  stream_.expires_after(std::chrono::milliseconds(server_->config.write_timeout_ms));
  error_code error;
  co_await asio::async_write(stream_, asio::buffer(piece), into(error));
  if (error) close();
  co_return !gone_;
}

asio::awaitable<void> Connection::end_stream() {
  if (gone_ || !chunked_) co_return;
  stream_.expires_after(std::chrono::milliseconds(server_->config.write_timeout_ms));
  error_code error;
  co_await asio::async_write(stream_, asio::buffer("0\r\n\r\n", 5), into(error));
  if (error) close();
}

bool Connection::client_gone() {
  if (gone_) return true;
  pollfd look{stream_.socket().native_handle(), POLLRDHUP, 0};
  if (::poll(&look, 1, 0) > 0 && (look.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0)
    gone_ = true;
  return gone_;
}

asio::awaitable<void> Connection::refuse(int status, const char* message) {
  keep_alive_ = false;
  answered_ = false;
  request_.method.clear();
  co_await reply(status, "application/json", json_error(status, message), {});
}

// Copies what handlers see out of the parser. False: two ways to tell the body's length, which is how
// requests are smuggled past a proxy (RFC 9112, 6.3).
bool Connection::take_request(Parser& parser) {
  auto& message = parser.get();
  request_ = HttpRequest{};
  request_.method = std::string(message.method_string());
  const std::string target(message.target());
  const size_t question = target.find('?');
  request_.path = target.substr(0, question);
  if (question != std::string::npos) request_.query = target.substr(question + 1);
  int lengths = 0, encodings = 0;
  for (const auto& field : message) {
    std::string name(field.name_string());
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    lengths += name == "content-length";
    encodings += name == "transfer-encoding";
    request_.headers[name] = std::string(field.value());
  }
  version_ = message.version();
  keep_alive_ = message.keep_alive();
  return lengths + encodings <= 1;
}

// False: the connection is at its end (closed, timed out, or refused with an answer).
asio::awaitable<bool> Connection::read_request() {
  const auto& config = server_->config;
  error_code error;
  if (buffer_.size() == 0) {  // between requests: any silence is fine for a while
    stream_.expires_after(std::chrono::milliseconds(config.idle_timeout_ms));
    const size_t n = co_await stream_.async_read_some(buffer_.prepare(4096), into(error));
    if (error) co_return false;
    buffer_.commit(n);
  }
  in_request_ = true;
  Parser parser;
  parser.header_limit(static_cast<std::uint32_t>(config.max_header_bytes));
  parser.body_limit(static_cast<std::uint64_t>(config.max_body_bytes));
  stream_.expires_after(std::chrono::milliseconds(config.header_timeout_ms));
  co_await http::async_read_header(stream_, buffer_, parser, into(error));
  if (!error && !take_request(parser)) {
    co_await refuse(400, "more than one Content-Length or Transfer-Encoding");
    co_return false;
  }
  if (!error) {
    if (request_.header("expect") == "100-continue") {
      http::response<http::empty_body> go_on(http::status::continue_, version_);
      co_await http::async_write(stream_, go_on, into(error));
    }
    stream_.expires_after(std::chrono::milliseconds(config.body_timeout_ms));
    if (!error) co_await http::async_read(stream_, buffer_, parser, into(error));
  }
  if (!error) {
    request_.body = std::move(parser.get().body());
    co_return true;
  }
  if (error == http::error::end_of_stream) co_return false;
  if (error == beast::error::timeout) {
    // The stream is closed by its own timer: nothing can be said to so slow a sender.
    co_return false;
  }
  if (error == http::error::body_limit) {
    co_await refuse(413, "the request body is larger than this server takes (max_body_bytes)");
  } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    co_await refuse(431, "the request's headers are larger than this server takes");
  } else if (error.category() == http::make_error_code(http::error::end_of_stream).category()) {
    co_await refuse(400, "malformed HTTP request");
  }
  co_return false;
}

asio::awaitable<void> Connection::run() {
  const auto self = shared_from_this();
  while (!gone_ && !server_->draining && co_await read_request()) {
    ++server_->busy;
    answered_ = false;
    try {
      co_await server_->handler(*this);
      if (!answered_) co_await reply(500, "application/json", json_error(500, "no answer"), {});
    } catch (const std::exception& error) {  // a request's failure must not end the server
      LOG_ERROR("request {} {}: {}", request_.method, request_.path, error.what());
      if (answered_) {
        close();
      } else {
        keep_alive_ = false;
      }
    }
    if (!answered_) co_await reply(500, "application/json", json_error(500, "internal error"), {});
    --server_->busy;
    in_request_ = false;
    request_.body = std::string();
    if (!keep_alive_) break;
  }
  // Lets a refused client read its answer before the reset that unread input would cause.
  error_code error;
  if (!gone_) {
    stream_.socket().shutdown(tcp::socket::shutdown_send, error);
    char scrap[4096];
    stream_.expires_after(std::chrono::seconds(1));
    for (int64_t drained = 0; !error && drained < server_->config.max_body_bytes;) {
      drained += static_cast<int64_t>(co_await stream_.async_read_some(asio::buffer(scrap), into(error)));
    }
  }
  close();
}

}  // namespace

asio::awaitable<void> HttpServer::State::accept_loop() {
  const auto self = shared_from_this();
  while (!draining) {
    error_code error;
    tcp::socket socket(asio::make_strand(io));
    co_await acceptor.async_accept(socket, into(error));
    if (error == asio::error::operation_aborted || !acceptor.is_open()) break;
    if (error) {  // out of descriptors, most likely: wait for some to come back
      LOG_WARN("accept: {}", error.message());
      asio::steady_timer pause(io, std::chrono::milliseconds(50));
      co_await pause.async_wait(into(error));
      continue;
    }
    socket.set_option(tcp::no_delay(true), error);
    if (connections >= config.max_connections) {
      const std::string body = json_error(503, "too many connections");
      const std::string text = fmt::format(
          "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
          "Connection: close\r\nContent-Length: {}\r\n\r\n{}",
          body.size(), body);
      socket.non_blocking(true, error);
      socket.write_some(asio::buffer(text), error);
      continue;
    }
    auto executor = socket.get_executor();
    auto connection = std::make_shared<Connection>(std::move(socket), self);
    asio::co_spawn(
        executor, [connection] { return connection->run(); }, asio::detached);
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
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
    files.rlim_cur = files.rlim_max;  // one descriptor a stream
    setrlimit(RLIMIT_NOFILE, &files);
  }
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
    s.threads.emplace_back([state = state_.get()] {
      for (;;) {
        try {
          state->io.run();
          return;
        } catch (const std::exception& error) {
          LOG_ERROR("server thread: {}", error.what());
        }
      }
    });
  }
  return {};
}

int HttpServer::port() const {
  return state_->port;
}
int64_t HttpServer::open_connections() const {
  return state_->connections;
}

void HttpServer::drain(Deadline deadline) {
  State& s = *state_;
  if (s.threads.empty()) return;
  s.draining = true;
  asio::post(s.io, [state = state_] {
    error_code ignored;
    state->acceptor.close(ignored);
  });
  const auto close_all = [&](bool at_once) {
    std::vector<std::shared_ptr<Connection>> alive;  // let go of outside the lock: the last one destroys
    {
      const std::lock_guard lock(s.mutex);
      for (Connection* connection : s.open) {
        if (auto one = connection->weak_from_this().lock()) alive.push_back(std::move(one));
      }
    }
    for (const auto& connection : alive) connection->close_soon(at_once);
  };
  close_all(false);
  while (s.connections > 0 && !deadline.expired()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    close_all(false);
  }
  close_all(true);
  const Deadline last = Deadline::after_ms(2000);  // handlers notice that their client is gone
  while (s.connections > 0 && !last.expired()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  s.keep_running.reset();
  s.io.stop();
  for (auto& thread : s.threads) thread.join();
  s.threads.clear();
}

}  // namespace flywheel::serve
