#include "runtime/addresses.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

namespace flywheel::runtime {
namespace {

TEST(Addresses, NamesAreLookedUpAndAddressesStay) {
  EXPECT_EQ(resolve_address("localhost").value(), "127.0.0.1");
  EXPECT_EQ(resolve_address("192.0.2.7").value(), "192.0.2.7");
  for (const char* unknown : {"no-such-host.invalid", "::1", "tcp://10.0.0.1", "10.0.0.1:80", ""}) {
    const auto found = resolve_address(unknown);
    ASSERT_FALSE(found.ok()) << unknown << " is " << *found;
    EXPECT_EQ(found.error().code, ErrorCode::kNotFound);
    EXPECT_NE(found.error().message.find("has no IPv4 address"), std::string::npos) << found.error().message;
  }
}

// This machine's own name may be loopback here, and is no way for others then.
TEST(Addresses, OtherHostsAreNotSentToLoopback) {
  EXPECT_TRUE(is_loopback("127.0.1.1"));
  EXPECT_FALSE(is_loopback("10.0.0.7"));
  EXPECT_EQ(resolve_for_others("127.0.0.2").value(), "127.0.0.2");  // whoever says this means it
  EXPECT_EQ(resolve_for_others("192.0.2.7").value(), "192.0.2.7");
  EXPECT_EQ(resolve_for_others("no-such-host.invalid").error().code, ErrorCode::kNotFound);
  const auto own = resolve_address(host_name());
  if (!own.ok()) GTEST_SKIP() << host_name() << " has no address here";
  EXPECT_EQ(resolve_for_others(host_name()).value(), is_loopback(*own) ? network_address() : *own);
}

TEST(Addresses, SayWhyNobodyCanListenThere) {
  EXPECT_TRUE(check_can_listen("127.0.0.1").ok());
  EXPECT_TRUE(check_can_listen("0.0.0.0").ok());
  EXPECT_EQ(check_can_listen("192.0.2.7").error().message, "192.0.2.7 is not an address of this machine");
  EXPECT_EQ(check_can_listen("localhost").error().message, "localhost is not an IPv4 address");

  // Somebody listens at the last of three ports.
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&at), size), 0);
  ASSERT_EQ(::listen(fd, 1), 0);
  ASSERT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&at), &size), 0);
  const int port = ntohs(at.sin_port);
  const auto taken = check_can_listen("127.0.0.1", port - 2, 3);
  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.error().code, ErrorCode::kExists);
  EXPECT_NE(taken.error().message.find("of 127.0.0.1 is in use"), std::string::npos) << taken.error().message;
  ::close(fd);
}

}  // namespace
}  // namespace flywheel::runtime
