// An HTTP/1.1 server on Boost.Beast: connections as coroutines, limits and deadlines on everything.
//
// A handler gets one exchange: the whole request (its body is read before), and the means to answer, at once
// or as a stream. It runs on the connection's strand; what blocks or computes for long goes elsewhere
// (event_queue.h). The server answers by itself what never reaches a handler: malformed requests (400), too
// large headers (431) and bodies (413), two framings in one request (400), too many
// connections (503).
//
// Ownership: the server owns its threads and connections. Threads: start/finish/drain/port from any.
// Errors: bind() and start() give kUnavailable when the address is taken or not ours.
//
//   HttpServer server({.port = 8000}, [](HttpExchange& exchange) -> asio::awaitable<void> {
//     co_await exchange.reply(200, "text/plain", "hello\n");
//   });
//   server.start().value();
//   ...
//   server.finish(Deadline::after_ms(30'000));
//   server.drain(Deadline::after_ms(1000));
#pragma once

#include <utility>  // first: Boost 1.74's awaitable.hpp needs it and does not include it

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/deadline.h"
#include "base/result.h"

namespace flywheel::serve {

namespace asio = boost::asio;

struct HttpServerConfig {
  std::string host = "127.0.0.1";  // loopback unless the operator says otherwise
  int port = 8000;                 // 0: any free one
  int threads = 1;                 // for sockets and JSON; models compute elsewhere
  int64_t max_body_bytes = int64_t{8} << 20;
  int64_t max_header_bytes = 64 << 10;
  int64_t max_connections = 20'000;
  int64_t header_timeout_ms =
      15'000;  // from the first byte of a request (or of the connection) to its last header
  int64_t body_timeout_ms = 60'000;
  int64_t idle_timeout_ms = 75'000;   // between requests of one connection
  int64_t write_timeout_ms = 60'000;  // a reader that takes nothing for so long is gone
  template <typename V>
  void fields(V& v) {
    v("host", host), v("port", port), v("threads", threads), v("max_body_bytes", max_body_bytes),
        v("max_header_bytes", max_header_bytes), v("max_connections", max_connections),
        v("header_timeout_ms", header_timeout_ms), v("body_timeout_ms", body_timeout_ms),
        v("idle_timeout_ms", idle_timeout_ms), v("write_timeout_ms", write_timeout_ms);
  }
};

struct HttpRequest {
  std::string method;                          // "GET"
  std::string path;                            // without the query, escapes decoded: "/v1/models"
  std::string query;                           // without the '?'
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;

  // A header's value, empty when absent. `name` in lower case.
  std::string_view header(const std::string& name) const;
};

using HttpHeaders = std::map<std::string, std::string>;

class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  virtual const HttpRequest& request() const = 0;
  virtual asio::any_io_executor executor() const = 0;

  // The whole answer. Once, and not together with a stream.
  virtual asio::awaitable<void> reply(int status, std::string content_type, std::string body,
                                      HttpHeaders headers = {}) = 0;

  // An answer in pieces (chunked). Writing waits for the reader of this connection only; false: it is gone.
  virtual asio::awaitable<bool> begin_stream(int status, std::string content_type,
                                             HttpHeaders headers = {}) = 0;
  virtual asio::awaitable<bool> write(std::string piece) = 0;
  virtual asio::awaitable<void> end_stream() = 0;

  // The other side has closed or vanished. Cheap: one look at the socket.
  virtual bool client_gone() = 0;
};

using HttpHandler = std::function<asio::awaitable<void>(HttpExchange& exchange)>;

class HttpServer {
 public:
  HttpServer(const HttpServerConfig& config, HttpHandler handler);
  ~HttpServer();  // drains for a second, then closes
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Takes the address, without answering on it yet: what is wrong with it shows before slow work (loading
  // models) begins. start() does it where it was not done.
  Result<void> bind();
  // Binds and serves in threads of its own.
  Result<void> start();
  // The port that it listens on, after start().
  int port() const;
  // Takes no more connections and waits for the requests under way; false: the deadline came before their
  // end.
  bool finish(Deadline deadline);
  // finish(), then closes what is left. Handlers see that their client is gone and are to return within
  // seconds.
  void drain(Deadline deadline);

  struct State;  // the implementation's

 private:
  std::shared_ptr<State> state_;
};

}  // namespace flywheel::serve
