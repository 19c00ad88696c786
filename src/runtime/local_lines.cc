// Lines within a host: unix stream sockets. The first message on each is the worker's name.
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "base/log.h"
#include "base/posix.h"
#include "runtime/awake_internal.h"
#include "runtime/lines_internal.h"

namespace flywheel::runtime {
namespace {

constexpr size_t kReadBytes = 256 << 10;
constexpr size_t kKeptBytes = 4 << 20;  // of memory, after a large message
constexpr size_t kLengthBytes = 8;

Error line_lost() {
  return make_error(ErrorCode::kPeerLost, "the other end of the line is gone ({})",
                    errno == 0 ? "closed" : std::strerror(errno));
}

bool would_wait() {
  return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

// Cuts what comes from a stream into messages: each is its length, 8 bytes, and its bytes.
class Messages {
 public:
  // Reads once. False: nothing is there, of a read that does not wait. kPeerLost at the stream's end.
  Result<bool> read(int fd, int flags) {
    make_room();
    errno = 0;
    const ssize_t n = ::recv(fd, bytes_.data() + end_, bytes_.size() - end_, flags);
    if (n < 0 && would_wait()) return false;
    if (n <= 0) return line_lost();
    end_ += static_cast<size_t>(n);
    return true;
  }
  // The next message, valid until read(); nothing when more must be read first.
  using Next = std::optional<std::string_view>;
  Result<Next> next() {
    const size_t have = end_ - begin_;
    if (have < kLengthBytes) return Next();
    uint64_t length = 0;
    std::memcpy(&length, bytes_.data() + begin_, kLengthBytes);
    if (length > kMostMessageBytes)
      return make_error(ErrorCode::kCorrupt, "a message of {} bytes on a line", length);
    missing_ = length + kLengthBytes > have ? length + kLengthBytes - have : 0;
    if (missing_ > 0) return Next();
    const std::string_view message(bytes_.data() + begin_ + kLengthBytes, length);
    begin_ += kLengthBytes + length;
    return Next(message);
  }

 private:
  // Grows as bytes come, not as a length promises them.
  void make_room() {
    const size_t have = end_ - begin_, wanted = std::clamp(missing_, kReadBytes, std::max(kReadBytes, have));
    if (have == 0 && bytes_.size() > kKeptBytes) bytes_ = std::string();
    if (have == 0) begin_ = end_ = 0;
    if (bytes_.size() - end_ >= wanted) return;
    std::memmove(bytes_.data(), bytes_.data() + begin_, have);
    begin_ = 0, end_ = have;
    if (bytes_.size() < end_ + wanted) bytes_.resize(end_ + wanted);
  }

  std::string bytes_;  // [begin_, end_) was read and not given out
  size_t begin_ = 0, end_ = 0;
  size_t missing_ = 0;  // of the message at begin_
};

// The bytes of length and message that the kernel took, from `sent` on. kPeerLost when the other end is gone.
Result<size_t> send_some(int fd, std::string_view message, size_t sent, int flags) {
  uint64_t length = message.size();
  std::array<iovec, 2> parts = {
      {{&length, kLengthBytes}, {const_cast<char*>(message.data()), message.size()}}};
  for (iovec& part : parts) {
    const size_t skipped = std::min(sent, part.iov_len);
    part.iov_base = static_cast<char*>(part.iov_base) + skipped;
    part.iov_len -= skipped;
    sent -= skipped;
  }
  msghdr header{};
  header.msg_iov = parts.data(), header.msg_iovlen = parts.size();
  errno = 0;
  const ssize_t n = ::sendmsg(fd, &header, flags | MSG_NOSIGNAL);
  if (n < 0 && would_wait()) return 0;
  if (n < 0) return line_lost();
  return static_cast<size_t>(n);
}

Result<Descriptor> make_socket(const std::string& path, int flags, sockaddr_un& name) {
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path)
    return make_error(ErrorCode::kInvalid, "{}: too long for a socket's path", path);
  std::memcpy(name.sun_path, path.data(), path.size());
  Descriptor fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
  if (!fd.valid()) return system_error("cannot make a socket", path);
  return fd;
}

class LocalLines : public Lines {
 public:
  LocalLines(std::string path, Descriptor listener, Events events, std::function<void()> changed)
      : path_(std::move(path)),
        listener_(std::move(listener)),
        events_(std::move(events)),
        changed_(std::move(changed)) {}

  LineEndpoints endpoints() const override { return {"unix:" + path_, ""}; }

  Result<void> send_to(const std::string& identity, std::string_view bytes) override {
    const auto found = by_identity_.find(identity);
    if (found == by_identity_.end()) return make_error(ErrorCode::kPeerLost, "{} is not connected", identity);
    Peer& peer = peers_.at(found->second);
    size_t sent = 0;
    if (peer.unsent.empty()) {
      const Result<size_t> taken = send_some(peer.fd.get(), bytes, 0, MSG_DONTWAIT);
      if (!taken.ok()) {
        ::shutdown(found->second, SHUT_RDWR);  // also where only memory was short: nothing may be left out
        return taken.error();
      }
      sent = *taken;
      if (sent == kLengthBytes + bytes.size()) return {};
      changed_();
    }
    const size_t sent_of_length = std::min(sent, kLengthBytes);
    const uint64_t length = bytes.size();
    peer.unsent.append(reinterpret_cast<const char*>(&length) + sent_of_length,
                       kLengthBytes - sent_of_length);
    peer.unsent.append(bytes.substr(sent - sent_of_length));
    return {};
  }

  void add_items(std::vector<zmq::pollitem_t>& items) override {
    items.push_back({nullptr, listener_.get(), ZMQ_POLLIN, 0});
    for (const auto& [fd, peer] : peers_) {
      const int events = ZMQ_POLLIN | (peer.unsent.empty() ? 0 : ZMQ_POLLOUT);
      items.push_back({nullptr, fd, static_cast<short>(events), 0});
    }
  }

  void read(std::span<const zmq::pollitem_t> items) override {
    for (const auto& item : items) {
      const auto found = item.revents == 0 ? peers_.end() : peers_.find(item.fd);
      if (found != peers_.end()) found->second.over = !found->second.in.read(item.fd, MSG_DONTWAIT).ok();
    }
  }

  void take(std::span<const zmq::pollitem_t> items) override {
    bool other_items = false;
    for (const auto& item : items) {
      if (item.revents == 0) continue;
      if (item.fd == listener_.get()) {
        other_items = accept_all() || other_items;
        continue;
      }
      const auto found = peers_.find(item.fd);
      if (found == peers_.end()) continue;
      Peer& peer = found->second;
      const bool waited = !peer.unsent.empty();
      const bool open = hand_out(item.fd, peer) && !peer.over && flush(peer);
      other_items = other_items || !open || waited != !peer.unsent.empty();
      if (!open) close(item.fd);
    }
    if (other_items) changed_();
  }

 private:
  struct Peer {
    Descriptor fd;
    std::string identity;  // empty before it has said it
    Messages in;           // the polling thread's
    bool over = false;     // the same
    std::string unsent;    // its first `unsent_gone` bytes were sent since
    size_t unsent_gone = 0;
  };

  bool accept_all() {
    bool any = false;
    for (;; any = true) {
      Descriptor fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!fd.valid() && !would_wait()) {  // no descriptor is left: it is tried again, but not at once
        LOG_WARN("{}: cannot take a connection: {}", path_, std::strerror(errno));
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
      if (!fd.valid()) return any;
      const int number = fd.get();
      peers_[number].fd = std::move(fd);
    }
  }

  // What was kept, as far as the kernel takes it. False: the line is over.
  static bool flush(Peer& peer) {
    while (peer.unsent_gone < peer.unsent.size()) {
      const std::string_view left = std::string_view(peer.unsent).substr(peer.unsent_gone);
      const ssize_t n = ::send(peer.fd.get(), left.data(), left.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && !would_wait()) return false;
      if (n <= 0) break;
      peer.unsent_gone += static_cast<size_t>(n);
    }
    if (peer.unsent_gone * 2 >= peer.unsent.size()) {  // moved seldom
      peer.unsent.erase(0, peer.unsent_gone);
      peer.unsent_gone = 0;
    }
    return true;
  }

  // False: the line is over.
  bool hand_out(int fd, Peer& peer) {
    for (;;) {
      const auto message = peer.in.next();
      if (!message.ok()) LOG_WARN("{}: {}", peer.identity, message.error().message);
      if (!message.ok()) return false;
      if (!*message) return true;
      if (!peer.identity.empty()) {
        events_.message(**message);
        continue;
      }
      peer.identity = **message;
      if (peer.identity.empty()) return false;
      by_identity_[peer.identity] = fd;
    }
  }

  void close(int fd) {
    const auto found = peers_.find(fd);
    const std::string identity = found->second.identity;
    peers_.erase(found);
    const auto named = by_identity_.find(identity);
    if (named == by_identity_.end() || named->second != fd) return;
    by_identity_.erase(named);
    events_.closed(identity);
  }

  std::string path_;
  Descriptor listener_;
  Events events_;
  std::function<void()> changed_;
  std::map<int, Peer> peers_;  // by descriptor
  std::map<std::string, int> by_identity_;
};

class LocalLine : public Line {
 public:
  explicit LocalLine(Descriptor fd) : fd_(std::move(fd)) {}

  Result<std::string_view> receive() override {
    for (;;) {
      ASSIGN_OR_RETURN(const auto message, in_.next());
      if (message) return *message;
      RETURN_IF_ERROR(read_more());
    }
  }

  Result<void> send(std::string_view bytes) override {
    const std::scoped_lock lock(mutex_);
    for (size_t sent = 0; sent < kLengthBytes + bytes.size();) {
      ASSIGN_OR_RETURN(const size_t n, send_some(fd_.get(), bytes, sent, 0));
      sent += n;
    }
    return {};
  }

 private:
  Result<void> read_more() {
    Result<bool> came = false;
    if (stay_awake([&] { return came = in_.read(fd_.get(), MSG_DONTWAIT), !came.ok() || *came; }))
      return came.ok() ? Result<void>() : came.error();
    ASSIGN_OR_RETURN([[maybe_unused]] const bool read, in_.read(fd_.get(), 0));
    return {};
  }

  Descriptor fd_;
  Messages in_;
  std::mutex mutex_;  // of send()
};

}  // namespace

Result<std::unique_ptr<Lines>> listen_here(const std::string& path, Lines::Events events,
                                           std::function<void()> changed) {
  sockaddr_un name{};
  ASSIGN_OR_RETURN(Descriptor fd, make_socket(path, SOCK_NONBLOCK, name));
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0) {
    return system_error("cannot listen at", path);
  }
  return std::unique_ptr<Lines>(
      std::make_unique<LocalLines>(path, std::move(fd), std::move(events), std::move(changed)));
}

Result<std::unique_ptr<Line>> connect_here(const std::string& path, const std::string& identity) {
  sockaddr_un name{};
  ASSIGN_OR_RETURN(Descriptor fd, make_socket(path, 0, name));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0)
    return make_error(ErrorCode::kPeerLost, "nobody listens at {} ({})", path, std::strerror(errno));
  std::unique_ptr<Line> line = std::make_unique<LocalLine>(std::move(fd));
  RETURN_IF_ERROR(line->send(identity));
  return line;
}

}  // namespace flywheel::runtime
