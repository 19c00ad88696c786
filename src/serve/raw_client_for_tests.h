// A plain socket: what a hostile or clumsy client sends, byte by byte.
//
//   RawClient client(server.port());
//   client.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
//   EXPECT_THAT(client.read(), testing::StartsWith("HTTP/1.1 200"));
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

namespace flywheel::serve {

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
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;
  // False: the server has closed.
  bool send(const std::string& text) {
    return ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
  }
  void end_sending() { ::shutdown(fd_, SHUT_WR); }
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

}  // namespace flywheel::serve
