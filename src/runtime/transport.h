// Sockets between the processes of a run: ZeroMQ over unix sockets on one host, TCP with CURVE between hosts.
//
// With keys every TCP connection is encrypted and both ends prove themselves: the binding end shows the
// server key that the workers were given, the connecting end the one client key of the run; others are
// refused in the handshake (RFC 26/CurveZMQ; the check of client keys is RFC 27/ZAP, answered by a thread
// here). Unix sockets lie in a folder that only the owner may enter and need no keys.
//
// Ownership: a Transport outlives its sockets. Threads: make sockets on any thread, use each on one at a
// time.
//
//   ASSIGN_OR_RETURN(Keys keys, Keys::make());
//   Transport transport(keys);
//   auto socket = transport.bind(ZMQ_ROUTER, "tcp://10.0.0.1:*");     // socket->endpoint has the port
//   auto worker = transport.connect(ZMQ_DEALER, endpoint, "identity");
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <zmq.hpp>

#include "base/deadline.h"
#include "base/result.h"

namespace flywheel::runtime {

// One pair for those who bind and one for those who connect, in Z85 text; empty for unix sockets alone.
struct Keys {
  std::string server_public, server_secret;  // a worker binds too, for its peers: it has both
  std::string client_public, client_secret;
  static Result<Keys> make();
  bool empty() const { return server_public.empty(); }
  // One line for a worker's environment, and back.
  std::string to_text() const;
  static Result<Keys> from_text(const std::string& text);
};

struct Socket {
  zmq::socket_t zmq;
  std::string endpoint;  // where it is bound

  Result<void> send(std::string_view bytes);
  // The bytes are kept alive by `owner` and not copied.
  Result<void> send_shared(std::shared_ptr<const std::string> owner, size_t offset, size_t size);
  // ROUTER: to one peer; kPeerLost when nobody of that name is connected.
  Result<void> send_to(const std::string& identity, std::string_view bytes);
  // kDeadline when nothing came in time.
  Result<std::string> receive(Deadline deadline);
};

class Transport {
 public:
  explicit Transport(Keys keys = {});
  ~Transport();
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  Result<Socket> bind(int type, const std::string& endpoint);
  Result<Socket> connect(int type, const std::string& endpoint, const std::string& identity = "");
  zmq::context_t& context() { return context_; }
  const Keys& keys() const { return keys_; }
  // Connections refused by their key.
  uint64_t refused() const { return refused_; }

 private:
  void authenticate();
  Keys keys_;
  zmq::context_t context_{1};
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> refused_{0};
  std::thread zap_;
};

}  // namespace flywheel::runtime
