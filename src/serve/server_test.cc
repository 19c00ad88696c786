// A whole server without models: its own addresses, and who may ask them what.
#include "serve/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/http_client.h"
#include "base/json.h"
#include "serve/raw_client_for_tests.h"

namespace flywheel::serve {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class ServerTest : public testing::Test {
 protected:
  ServerTest() : server_(config()) { server_.start().value(); }
  static ServerConfig config() {
    ServerConfig config;
    config.http.port = 0;
    return config;
  }
  std::string ask(const std::string& method, const std::string& path) {
    RawClient client(server_.port());
    client.send(method + " " + path +
                " HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    return client.read(60'000);
  }
  Server server_;
};

TEST_F(ServerTest, TellsOfItselfToThoseWhoRead) {
  EXPECT_EQ(parse_json(http_get(server_.url() + "/health")->body).value()["status"], "ok");
  EXPECT_THAT(http_get(server_.url() + "/metrics")->body, HasSubstr("flywheel_serve_requests_total"));
  for (const char* path : {"/health", "/metrics"}) {
    const HttpReply head = http_head(server_.url() + path).value();
    EXPECT_EQ(head.status, 200) << path;
    EXPECT_EQ(head.body, "") << path;
  }
}

TEST_F(ServerTest, AnotherMethodIs405AndToldWhichToTake) {
  const auto refused = [&](const std::string& method, const std::string& path, const std::string& allow) {
    const std::string answer = ask(method, path);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 405")) << method << " " << path;
    EXPECT_THAT(answer, HasSubstr("\r\nAllow: " + allow + "\r\n")) << method << " " << path;
    if (method == "HEAD") return;
    const Json error = parse_json(answer.substr(answer.find("\r\n\r\n") + 4)).value()["error"];
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_EQ(error["message"], path + " takes " + allow + ", not " + method);
  };
  for (const char* method : {"POST", "PUT", "DELETE", "OPTIONS", "FOO"}) {
    for (const char* path : {"/health", "/metrics"}) refused(method, path, "GET, HEAD");
  }
  refused("POST", "/v1/models", "GET");
  refused("GET", "/v1/completions", "POST");
  refused("HEAD", "/v1/chat/completions", "POST");
  EXPECT_THAT(ask("POST", "/nowhere"), StartsWith("HTTP/1.1 404"));
}

}  // namespace
}  // namespace flywheel::serve
