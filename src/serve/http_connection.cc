// One connection: requests read within limits, handed on, and answered, until either side has had enough.
#include <poll.h>
#include <strings.h>

#include <algorithm>
#include <cctype>
#include <map>

#include "base/log.h"
#include "base/metrics.h"
#include "serve/api_error.h"
#include "serve/http_server_internal.h"

namespace flywheel::serve {
namespace {

// What a refused client may still send while it is to read why: bodies of the largest size that is taken,
// time, and time without a byte.
constexpr int64_t kMostBodiesDrained = 8, kMostLingerMs = 10'000, kLingerSilenceMs = 1000;
constexpr size_t kDrainedAtOnceBytes = size_t{64} << 10;

bool is_chunked(std::string_view encoding) {
  return encoding.size() == 7 && ::strncasecmp(encoding.data(), "chunked", 7) == 0;
}

// What the server says by itself has the form of every other error of the API.
std::string json_error(int status, const std::string& message) {
  return ApiError(status, message).body();
}

// -1: not a digit.
int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// RFC 3986, 2.1. False: an escape is not two hexadecimal digits, or hides a control character (from logs).
bool decode_percent(std::string& path) {
  std::string out;
  for (size_t i = 0; i < path.size(); ++i) {
    if (path[i] != '%') {
      out += path[i];
      continue;
    }
    const int high = i + 2 < path.size() ? hex_digit(path[i + 1]) : -1;
    const int low = high >= 0 ? hex_digit(path[i + 2]) : -1;
    const int byte = high * 16 + low;
    if (low < 0 || byte < 0x20 || byte == 0x7f) return false;
    out += static_cast<char>(byte);
    i += 2;
  }
  path = std::move(out);
  return true;
}

// "http://host/path" -> "/path": proxies' clients send the whole address (RFC 9112, 3.2.2).
std::string origin_form(std::string target) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (strncasecmp(target.c_str(), scheme.data(), scheme.size()) != 0) continue;
    target.erase(0, std::min(target.find_first_of("/?", scheme.size()), target.size()));
    return target.starts_with('/') ? target : "/" + target;
  }
  return target;
}

}  // namespace

void count_answer(int status) {
  Metrics::global()
      .counter("flywheel_serve_requests_total", "HTTP requests answered, by status",
               {{"status", std::to_string(status)}})
      .add(1);
}

std::string_view HttpRequest::header(const std::string& name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? std::string_view() : std::string_view(it->second);
}

template <typename Message>
void HttpConnection::fill(Message& message, const std::string& content_type, const HttpHeaders& headers) {
  message.set(http::field::server, "flywheel");
  message.set(http::field::content_type, content_type);
  for (const auto& [name, value] : headers) message.set(name, value);
  message.keep_alive(keep_alive_ && !server_->draining);
}

asio::awaitable<void> HttpConnection::reply(int status, std::string content_type, std::string body,
                                            HttpHeaders headers) {
  if (answered_ || gone_) co_return;
  answered_ = true;
  count_answer(status);
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

asio::awaitable<bool> HttpConnection::begin_stream(int status, std::string content_type,
                                                   HttpHeaders headers) {
  if (answered_ || gone_) co_return false;
  answered_ = true;
  count_answer(status);
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

asio::awaitable<bool> HttpConnection::write(std::string piece) {
  if (gone_) co_return false;
  if (piece.empty()) co_return true;
  if (chunked_) piece = fmt::format("{:x}\r\n", piece.size()) + piece + "\r\n";
  stream_.expires_after(std::chrono::milliseconds(server_->config.write_timeout_ms));
  error_code error;
  co_await asio::async_write(stream_, asio::buffer(piece), into(error));
  if (error) close();
  co_return !gone_;
}

asio::awaitable<void> HttpConnection::end_stream() {
  if (gone_ || !chunked_) co_return;
  stream_.expires_after(std::chrono::milliseconds(server_->config.write_timeout_ms));
  error_code error;
  co_await asio::async_write(stream_, asio::buffer("0\r\n\r\n", 5), into(error));
  if (error) close();
}

bool HttpConnection::client_gone() {
  if (gone_) return true;
  pollfd look{stream_.socket().native_handle(), POLLRDHUP, 0};
  if (::poll(&look, 1, 0) > 0 && (look.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0)
    gone_ = true;
  return gone_;
}

asio::awaitable<void> HttpConnection::refuse(int status, std::string message) {
  keep_alive_ = false;
  answered_ = false;
  request_.method.clear();
  co_await reply(status, "application/json", json_error(status, message), {});
}

// Copies what handlers see out of the parser. Says what is wrong with it, "" when nothing is.
std::string HttpConnection::take_request(Parser& parser) {
  auto& message = parser.get();
  request_ = HttpRequest{};
  request_.method = std::string(message.method_string());
  const std::string target = origin_form(std::string(message.target()));
  const size_t question = target.find('?');
  request_.path = target.substr(0, question);
  const bool decoded = decode_percent(request_.path);
  if (question != std::string::npos) request_.query = target.substr(question + 1);
  std::map<std::string, int> times;
  for (const auto& field : message) {
    std::string name(field.name_string());
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    ++times[name];
    request_.headers[name] = std::string(field.value());
  }
  version_ = message.version();
  keep_alive_ = message.keep_alive();
  if (!decoded)
    return "the path holds a % that is not followed by the two hexadecimal digits of a printable character";
  // Two ways to tell the body's length are how requests are smuggled past a proxy (RFC 9112, 6.3).
  if (times["content-length"] + times["transfer-encoding"] > 1)
    return "more than one Content-Length or Transfer-Encoding";
  // So is an encoding that leaves the body's end open.
  if (times["transfer-encoding"] == 1 && !is_chunked(request_.header("transfer-encoding")))
    return "Transfer-Encoding may only be chunked";
  for (const char* name : {"host", "authorization"}) {
    if (times[name] > 1) return fmt::format("more than one {} header", name);
  }
  if (version_ >= 11 && times["host"] == 0) return "HTTP/1.1 requires a Host header";
  return "";
}

// False: the connection is at its end (closed, timed out, or refused with an answer).
asio::awaitable<bool> HttpConnection::read_request() {
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
  if (!error) {
    if (const std::string wrong = take_request(parser); !wrong.empty()) {
      co_await refuse(400, wrong);
      co_return false;
    }
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

asio::awaitable<void> HttpConnection::run() {
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
  if (!gone_) co_await linger();
  close();
}

// Lets a refused client read its answer before the reset that unread input would cause. Many send their whole
// body before they read.
asio::awaitable<void> HttpConnection::linger() {
  error_code error;
  in_request_ = false;  // a server that drains does not wait for this
  stream_.socket().shutdown(tcp::socket::shutdown_send, error);
  const Deadline last = Deadline::after_ms(kMostLingerMs);
  const int64_t most_bytes = kMostBodiesDrained * server_->config.max_body_bytes;
  buffer_.clear();
  for (int64_t drained = 0; !error && drained < most_bytes && !last.expired();) {
    stream_.expires_after(std::chrono::milliseconds(kLingerSilenceMs));
    const auto scrap = buffer_.prepare(kDrainedAtOnceBytes);
    drained += static_cast<int64_t>(co_await stream_.async_read_some(scrap, into(error)));
  }
}

}  // namespace flywheel::serve
