#include "runtime/addresses.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/posix.h"

namespace flywheel::runtime {
namespace {

Result<void> check_port(const sockaddr_in& where, const std::string& address) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return system_error("cannot make a socket for", address);
  const int reuse = 1;  // as ZeroMQ does: ports that were in use a moment ago are free
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse);
  const bool bound = ::bind(fd, reinterpret_cast<const sockaddr*>(&where), sizeof where) == 0;
  const int why = errno;
  ::close(fd);
  if (bound) return {};
  if (why == EADDRINUSE) {
    return make_error(ErrorCode::kExists, "port {} of {} is in use", ntohs(where.sin_port), address);
  }
  if (why == EADDRNOTAVAIL) {
    return make_error(ErrorCode::kInvalid, "{} is not an address of this machine", address);
  }
  return system_error("cannot listen at", address, why);
}

}  // namespace

Result<std::string> resolve_address(const std::string& name) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int failed = ::getaddrinfo(name.c_str(), nullptr, &hints, &found); failed != 0) {
    return make_error(ErrorCode::kNotFound, "{} has no IPv4 address ({})", name, ::gai_strerror(failed));
  }
  std::array<char, INET_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(found->ai_addr)->sin_addr, text.data(),
              text.size());
  ::freeaddrinfo(found);
  return std::string(text.data());
}

Result<void> check_can_listen(const std::string& address, int port, int count) {
  sockaddr_in where{};
  where.sin_family = AF_INET;
  if (::inet_pton(AF_INET, address.c_str(), &where.sin_addr) != 1) {
    return make_error(ErrorCode::kInvalid, "{} is not an IPv4 address", address);
  }
  for (int i = 0; i < count; ++i) {
    where.sin_port = htons(static_cast<uint16_t>(port == 0 ? 0 : port + i));
    RETURN_IF_ERROR(check_port(where, address));
  }
  return {};
}

Result<std::string> resolve_for_others(const std::string& name) {
  ASSIGN_OR_RETURN(const std::string address, resolve_address(name));
  const auto first_label = [](const std::string& full) { return full.substr(0, full.find('.')); };
  return is_loopback(address) && first_label(name) == first_label(host_name()) ? network_address() : address;
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.");
}

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "?";
}

// A datagram socket that is connected has its own address chosen; nothing is sent.
Result<std::string> address_facing(const std::string& address) {
  sockaddr_in there{}, here{};
  there.sin_family = AF_INET;
  there.sin_port = htons(9);
  if (::inet_pton(AF_INET, address.c_str(), &there.sin_addr) != 1) {
    return make_error(ErrorCode::kInvalid, "{} is not an IPv4 address", address);
  }
  const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return system_error("cannot make a socket for", address);
  socklen_t size = sizeof here;
  const bool known = ::connect(fd, reinterpret_cast<const sockaddr*>(&there), sizeof there) == 0 &&
                     ::getsockname(fd, reinterpret_cast<sockaddr*>(&here), &size) == 0;
  const int why = errno;
  ::close(fd);
  if (!known)
    return make_error(ErrorCode::kUnavailable, "there is no way to {} from here: {}", address, strerror(why));
  std::array<char, INET_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET, &here.sin_addr, text.data(), text.size());
  return std::string(text.data());
}

std::string network_address() {
  std::string address = "127.0.0.1";
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return address;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr || one->ifa_addr->sa_family != AF_INET) continue;
    if ((one->ifa_flags & IFF_UP) == 0 || (one->ifa_flags & IFF_LOOPBACK) != 0) continue;
    std::array<char, INET_ADDRSTRLEN> text{};
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(one->ifa_addr)->sin_addr, text.data(),
                text.size());
    address = text.data();
    break;
  }
  ::freeifaddrs(all);
  return address;
}

}  // namespace flywheel::runtime
