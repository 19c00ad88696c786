#include "serve/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/http_client.h"
#include "base/metrics.h"
#include "base/mutation_for_tests.h"
#include "base/philox.h"
#include "base/slowness_for_tests.h"
#include "serve/event_queue.h"
#include "serve/raw_client_for_tests.h"

namespace flywheel::serve {
namespace {

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
  // A body whose end is not known would be read as the next request.
  for (const char* encoding :
       {"gzip", "identity", "xchunked", "chunked, identity", "gzip, chunked", "\"chunked\"", ""}) {
    const std::string answer = ask(std::string("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ") +
                                   encoding + "\r\n\r\nGET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
    EXPECT_THAT(answer, testing::StartsWith("HTTP/1.1 400")) << encoding;
    EXPECT_THAT(answer, testing::Not(testing::HasSubstr("200"))) << encoding;
  }
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
              testing::HasSubstr("POST hi"));
  EXPECT_THAT(ask("GET /echo HTTP/1.1\r\n\r\n"), testing::HasSubstr("Host"));
  EXPECT_THAT(
      ask("GET /echo HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\nAuthorization: Bearer y\r\n\r\n"),
      testing::HasSubstr("more than one authorization"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n"),
              testing::HasSubstr("413"));
  EXPECT_THAT(ask("GET /echo HTTP/1.1\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n"),
              testing::HasSubstr("431"));
  EXPECT_THAT(
      ask("GET /echo HTTP/1.1\r\nHost: a\r\n\r\nGET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
      testing::HasSubstr("GET HTTP/1.1 200"));  // two requests at once, two answers
  EXPECT_EQ(http_get(url_ + "/echo")->status, 200);
}

// The body is larger than the 10,000 bytes that are taken, and sent whole before anything is read.
TEST_F(HttpServerTest, AClientThatSendsAllBeforeItReadsIsToldWhyItIsRefused) {
  RawClient client(server_->port());
  client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n");
  for (int i = 0; i < 7; ++i) {
    EXPECT_TRUE(client.send(std::string(10'000, 'x'))) << i;
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
  }
  EXPECT_THAT(client.read(), testing::StartsWith("HTTP/1.1 413"));
}

TEST_F(HttpServerTest, ARefusedClientIsNotReadForEver) {
  RawClient client(server_->port());
  client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n");
  const std::string piece(1 << 20, 'x');  // kernels may hold some of them
  int taken = 0;
  while (taken < 1000 && client.send(piece)) ++taken;
  EXPECT_LT(taken, 1000);
}

// The other direction's end, with which a client that has vanished begins too.
TEST_F(HttpServerTest, AHalfClosedClientGetsOnlyWhatIsReadyAtOnce) {
  RawClient quick(server_->port());
  quick.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
  quick.end_sending();
  EXPECT_THAT(quick.read(), testing::EndsWith("POST hi"));
  RawClient slow(server_->port());
  slow.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  slow.end_sending();
  const Stopwatch clock;
  EXPECT_EQ(slow.read(60'000), "");
  EXPECT_LT(clock.seconds(), 2 * kSlowness);
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
  for (int i = 0; i < 1000 * kSlowness && waiting_ < 1000; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
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
