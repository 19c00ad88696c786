#include "serve/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/http_client.h"
#include "base/metrics.h"
#include "base/mutation_for_tests.h"
#include "base/philox.h"
#include "base/slowness_for_tests.h"
#include "serve/event_queue.h"

namespace flywheel::serve {
namespace {

// A plain socket: what a hostile or clumsy client sends, byte by byte.
class RawClient {
 public:
  explicit RawClient(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~RawClient() { ::close(fd_); }
  void send(const std::string& text) { (void)!::send(fd_, text.data(), text.size(), MSG_NOSIGNAL); }
  // What comes until the server closes or `ms` pass in silence.
  std::string read(int ms = 1000) {
    std::string out;
    pollfd look{fd_, POLLIN, 0};
    while (::poll(&look, 1, ms) > 0) {
      char buffer[4096];
      const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
      if (n <= 0) break;
      out.append(buffer, static_cast<size_t>(n));
    }
    return out;
  }
  bool connected_ = false;

 private:
  int fd_;
};

class HttpServerTest : public testing::Test {
 protected:
  HttpServerTest() {
    HttpServerConfig config;
    config.port = 0;
    config.max_body_bytes = 10'000;
    config.max_header_bytes = 8192;
    config.header_timeout_ms = 300;
    config.body_timeout_ms = 300;
    server_ = std::make_unique<HttpServer>(config, [this](HttpExchange& exchange) -> asio::awaitable<void> {
      const std::string path = exchange.request().path;
      if (path == "/echo") {
        co_await exchange.reply(200, "text/plain", exchange.request().method + " " + exchange.request().body);
      } else if (path.starts_with("/path/")) {
        co_await exchange.reply(200, "text/plain", path + "?" + exchange.request().query);
      } else if (path == "/throw") {
        throw std::runtime_error("boom");
      } else if (path == "/stream") {
        co_await exchange.begin_stream(200, "text/event-stream");
        for (int i = 0; i < 3; ++i) co_await exchange.write("data: " + std::to_string(i) + "\n\n");
        co_await exchange.end_stream();
      } else if (path == "/wait") {
        auto events = std::make_shared<EventQueue<int>>(exchange.executor());
        ++waiting_;
        for (int i = 0; i < 100 && !exchange.client_gone(); ++i) co_await events->pop(50);
        --waiting_;
        co_await exchange.reply(200, "text/plain", "done");
      }
    });
    server_->start().value();
    url_ = "http://127.0.0.1:" + std::to_string(server_->port());
  }
  std::unique_ptr<HttpServer> server_;
  std::string url_;
  std::atomic<int> waiting_{0};
};

TEST_F(HttpServerTest, AnswersAndStreams) {
  EXPECT_EQ(http_get(url_ + "/echo")->body, "GET ");
  EXPECT_EQ(http_post(url_ + "/echo", "hi")->body, "POST hi");
  EXPECT_EQ(http_get(url_ + "/stream")->body, "data: 0\n\ndata: 1\n\ndata: 2\n\n");
  EXPECT_EQ(http_get(url_ + "/throw")->status, 500);
  EXPECT_EQ(http_get(url_ + "/silent")->status, 500);
  EXPECT_EQ(http_head(url_ + "/echo")->status, 200);
}

TEST_F(HttpServerTest, RefusesWhatIsMalformedAndStaysUp) {
  const auto ask = [&](const std::string& text) {
    RawClient client(server_->port());
    client.send(text);
    return client.read();
  };
  EXPECT_THAT(ask("NONSENSE\r\n\r\n"), testing::HasSubstr("400"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
              testing::HasSubstr("400"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: "
                  "chunked\r\n\r\n0\r\n\r\n"),
              testing::HasSubstr("400"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n"),
              testing::HasSubstr("413"));
  EXPECT_THAT(ask("GET /echo HTTP/1.1\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n"),
              testing::HasSubstr("431"));
  EXPECT_THAT(
      ask("GET /echo HTTP/1.1\r\nHost: a\r\n\r\nGET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
      testing::HasSubstr("GET HTTP/1.1 200"));  // two requests at once, two answers
  EXPECT_EQ(http_get(url_ + "/echo")->status, 200);
}

TEST_F(HttpServerTest, DecodesThePathAndNotTheQuery) {
  EXPECT_EQ(http_get(url_ + "/path/org%2Ftiny?a=%2F")->body, "/path/org/tiny?a=%2F");
  EXPECT_EQ(http_get(url_ + "/path/%E6%97%A5%e6%9c%ac")->body, "/path/日本?");
  EXPECT_EQ(http_get(url_ + "/path/a+b%2520c")->body, "/path/a+b%20c?");  // once, and + is no space here
  for (const char* malformed :
       {"/path/%", "/path/%2", "/path/%zz", "/path/%2g", "/path/a%%41", "/path/%00", "/path/%0a"}) {
    RawClient client(server_->port());
    client.send(std::string("GET ") + malformed + " HTTP/1.1\r\nHost: a\r\n\r\n");
    const std::string answer = client.read();
    EXPECT_THAT(answer, testing::StartsWith("HTTP/1.1 400")) << malformed;
    EXPECT_THAT(answer, testing::HasSubstr("two hexadecimal digits")) << malformed;
  }
}

TEST_F(HttpServerTest, TakesTheAbsoluteForm) {
  const auto ask = [&](const std::string& target) {
    RawClient client(server_->port());
    client.send("GET " + target + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    return client.read();
  };
  EXPECT_THAT(ask("http://a:80/path/x?y=1"), testing::EndsWith("/path/x?y=1"));
  EXPECT_THAT(ask("HTTPS://a/path/http://b"), testing::EndsWith("/path/http://b?"));
  EXPECT_THAT(ask("http://a"), testing::StartsWith("HTTP/1.1 500"));  // no handler of ours answers "/"
}

TEST_F(HttpServerTest, CountsEveryAnswerByStatus) {
  const auto answers = [](int status) {
    return Metrics::global()
        .counter("flywheel_serve_requests_total", "HTTP requests answered, by status",
                 {{"status", std::to_string(status)}})
        .value();
  };
  const auto counted = [&](int status, const std::string& text) {
    const double before = answers(status);
    RawClient client(server_->port());
    client.send(text);
    client.read();
    return answers(status) - before;
  };
  EXPECT_EQ(counted(200, "GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), 1);
  EXPECT_EQ(counted(200, "GET /stream HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), 1);
  EXPECT_EQ(counted(400, "NONSENSE\r\n\r\n"), 1);
  EXPECT_EQ(counted(413, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n"), 1);
  EXPECT_EQ(counted(431, "GET /echo HTTP/1.1\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n"), 1);
  EXPECT_EQ(counted(500, "GET /silent HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), 1);

  HttpServerConfig config;
  config.port = 0, config.max_connections = 1;
  HttpServer small(config, [](HttpExchange&) -> asio::awaitable<void> { co_return; });
  small.start().value();
  const double before = answers(503);
  RawClient first(small.port());  // taken first: connections are accepted in their order
  RawClient second(small.port());
  EXPECT_THAT(second.read(), testing::StartsWith("HTTP/1.1 503"));
  EXPECT_EQ(answers(503) - before, 1);
}

// Any bytes on the wire: an answer or a closed connection, and the next client is served.
TEST_F(HttpServerTest, SurvivesMutations) {
  const std::string original =
      "POST /echo?a=b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
      "5;x=y\r\nhello\r\n0\r\nTrailer: t\r\n\r\nGET /stream HTTP/1.0\r\nConnection: keep-alive\r\n"
      "Content-Length: 3\r\n\r\nabc";
  const std::string alphabet = "\r\n :;,0f/HTP1.\t\"";
  Philox rng(15);
  for (int round = 0; round < 500; ++round) {
    std::string text = original;
    mutate(text, rng, {.alphabet = alphabet, .most_edits = 6, .most_inserted = 40, .most_erased = 20});
    RawClient client(server_->port());
    ASSERT_TRUE(client.connected_);
    client.send(text);
    const std::string answer = client.read(1);
    EXPECT_THAT(answer, testing::AnyOf("", testing::StartsWith("HTTP/1."))) << text;
  }
  EXPECT_EQ(http_post(url_ + "/echo", "hi")->body, "POST hi");
}

TEST_F(HttpServerTest, SlowSendersAreLetGo) {
  RawClient client(server_->port());
  client.send("GET /echo HT");
  const Stopwatch clock;
  client.read(60'000);
  EXPECT_LT(clock.seconds(), 2 * kSlowness);
}

TEST_F(HttpServerTest, NoticesAClientThatVanishes) {
  {
    RawClient client(server_->port());
    client.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    for (int i = 0; i < 200 && waiting_ == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ASSERT_EQ(waiting_, 1);
  }
  const Stopwatch clock;
  while (waiting_ > 0 && clock.seconds() < 3 * kSlowness)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_LT(clock.seconds(), 1 * kSlowness);
}

TEST_F(HttpServerTest, DrainFinishesWhatIsUnderWay) {
  std::string body;
  std::thread asker([&] { body = http_get(url_ + "/wait").value().body; });
  for (int i = 0; i < 200 && waiting_ == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  server_->drain(Deadline::after_ms(20'000));
  asker.join();
  EXPECT_EQ(body, "done");
  EXPECT_FALSE(http_get(url_ + "/echo").ok());
}

TEST_F(HttpServerTest, DrainCutsWhatDoesNotFinish) {
  RawClient client(server_->port());
  client.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  for (int i = 0; i < 200 && waiting_ == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ASSERT_EQ(waiting_, 1);
  EXPECT_FALSE(server_->finish(Deadline::after_ms(100)));
  EXPECT_EQ(waiting_, 1);  // still under way
  const Stopwatch clock;
  server_->drain(Deadline::after_ms(100));
  EXPECT_LT(clock.seconds(), 2 * kSlowness);
  EXPECT_EQ(waiting_, 0);
  EXPECT_EQ(client.read(), "");
  EXPECT_TRUE(server_->finish(Deadline::after_ms(100)));
}

TEST_F(HttpServerTest, ThousandConnections) {
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 1000; ++i) {
    clients.push_back(std::make_unique<RawClient>(server_->port()));
    ASSERT_TRUE(clients.back()->connected_);
    clients.back()->send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  }
  for (int i = 0; i < 1000 && waiting_ < 1000; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(waiting_, 1000);
  EXPECT_EQ(http_get(url_ + "/echo")->status, 200);
}

TEST(HttpServer, RefusesATakenPort) {
  HttpServerConfig config;
  config.port = 0;
  HttpServer first(config, [](HttpExchange&) -> asio::awaitable<void> { co_return; });
  first.start().value();
  config.port = first.port();
  HttpServer second(config, [](HttpExchange&) -> asio::awaitable<void> { co_return; });
  EXPECT_EQ(second.start().error().code, ErrorCode::kUnavailable);
}

}  // namespace
}  // namespace flywheel::serve
