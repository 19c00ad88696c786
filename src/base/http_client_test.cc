#include "base/http_client.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "base/file.h"
#include "base/process.h"

namespace flywheel {
namespace {

// Python's own file server is the other side.
TEST(HttpClient, GetsFilesFromAServer) {
  const TempFolder folder;
  ASSERT_TRUE(write_file(folder / "a.txt", "hello").ok());
  const std::string program =
      "import http.server,functools,sys\n"
      "h=functools.partial(http.server.SimpleHTTPRequestHandler,directory=sys.argv[1])\n"
      "s=http.server.ThreadingHTTPServer(('127.0.0.1',0),h)\n"
      "open(sys.argv[1]+'/port','w').write(str(s.server_port)+' ')\n"
      "s.serve_forever()\n";
  auto server = Process::start({"python3", "-c", program, folder.path()}, {.output_file = folder / "log"});
  if (!server.ok()) GTEST_SKIP() << "no python3 to serve files";
  std::string port;
  for (int i = 0; i < 1000 && port.empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    port = read_file(folder / "port").value_or("");
  }
  ASSERT_FALSE(port.empty());
  const std::string url = "http://127.0.0.1:" + port.substr(0, port.size() - 1);
  const auto reply = http_get(url + "/a.txt");
  ASSERT_TRUE(reply.ok()) << reply.error().to_string();
  EXPECT_EQ(reply->status, 200);
  EXPECT_EQ(reply->body, "hello");
  EXPECT_EQ(reply->headers.at("content-length"), "5");
  EXPECT_EQ(http_get(url + "/none")->status, 404);
  EXPECT_EQ(http_head(url + "/a.txt")->body, "");
  EXPECT_EQ(http_get(url + "/a.txt", {.max_body_bytes = 2}).error().code, ErrorCode::kFull);
  EXPECT_EQ(http_get(url + "/a.txt", {.on_body = [](std::string_view) { return false; }}).error().code,
            ErrorCode::kCancelled);
}

TEST(HttpClient, Errors) {
  EXPECT_EQ(http_get("http://127.0.0.1:1/").error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(http_get("file:///etc/passwd").error().code, ErrorCode::kInvalid);
  const Error gone = http_get("http://user:hunter22@127.0.0.1:1/a").error();
  EXPECT_TRUE(gone.message.starts_with("http://127.0.0.1:1/a: ")) << gone.message;
  const Error header = http_get("http://127.0.0.1:1/", {.headers = {{"Authorization", "a\nb"}}}).error();
  EXPECT_EQ(header.code, ErrorCode::kInvalid);
  EXPECT_EQ(header.message, "http://127.0.0.1:1/: a control character in the header Authorization");
}

TEST(HttpClient, GivesUpOnAServerThatSaysNothing) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(listener, reinterpret_cast<struct sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(listener, 1), 0);
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<struct sockaddr*>(&address), &size), 0);
  const std::string url = "http://127.0.0.1:" + std::to_string(ntohs(address.sin_port)) + "/";
  const Stopwatch clock;
  EXPECT_EQ(http_get(url, {.stall_ms = 1000}).error().code, ErrorCode::kDeadline);
  EXPECT_LT(clock.seconds(), 10);
  ::close(listener);
}

}  // namespace
}  // namespace flywheel
