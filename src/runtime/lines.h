// The lines that commands and results go over: one from a controller to each of its workers, in order in both
// directions.
//
// Within a host a line is a unix stream socket, written by who has something to say and read by who waits for
// it. ZeroMQ has a thread of its own between its sockets and the kernel, at both ends and in both directions:
// four more threads to wake for a command and its result, each of which costs as much as all else together.
// Between hosts, where the network takes longer than that and must not be trusted, lines are pairs of ZeroMQ
// sockets (transport.h).
//
// A message is at most kMostMessageBytes. Nothing is lost or mended behind anybody's back: a line that breaks
// is over, and so, for the controller, is its worker.
//
//   auto lines = Lines::listen(transport, {"unix:/tmp/x/line"}, {on_message, on_closed}, wake).value();
//   auto line = Line::connect(transport, lines->endpoints(), "1/0/7").value();       // in a worker
//   lines->send_to("1/0/7", bytes);                       // kPeerLost until it has connected
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>
#include <zmq.hpp>

#include "base/result.h"
#include "runtime/transport.h"

namespace flywheel::runtime {

constexpr uint64_t kMostMessageBytes = uint64_t{1} << 40;

// Where a worker connects: "unix:PATH" and nothing, or two of "tcp://ADDRESS:PORT".
struct LineEndpoints {
  std::string commands, results;
};

// The controller's ends. Two threads at most: the one that polls, which alone calls add_items(), read() and
// take(), and one that sends; between take() and send_to() the caller keeps a lock.
class Lines {
 public:
  struct Events {
    std::function<void(std::string_view message)> message;
    std::function<void(const std::string& identity)> closed;  // within a host only
  };
  // `changed` is called, by send_to(), when the items are to be asked for anew by the thread that polls;
  // take() may change them too.
  static Result<std::unique_ptr<Lines>> listen(Transport& transport, const LineEndpoints& where,
                                               Events events, std::function<void()> changed);
  virtual ~Lines() = default;
  virtual LineEndpoints endpoints() const = 0;
  // Never waits: what the worker does not take yet is kept here. kPeerLost when nobody of that name is
  // connected.
  virtual Result<void> send_to(const std::string& identity, std::string_view bytes) = 0;
  // What is to be waited for, appended. Under the lock too.
  virtual void add_items(std::vector<zmq::pollitem_t>& items) = 0;
  // Fetches what came, of the items that add_items() gave last: some of it, if it is much.
  virtual void read(std::span<const zmq::pollitem_t> items) = 0;
  // Tells of what was fetched.
  virtual void take(std::span<const zmq::pollitem_t> items) = 0;
};

// A worker's end.
class Line {
 public:
  // Of a worker that the controller knows as `identity`.
  static Result<std::unique_ptr<Line>> connect(Transport& transport, const LineEndpoints& where,
                                               const std::string& identity);
  virtual ~Line() = default;
  // The next message; its bytes are valid until the next call. Waits for as long as it takes: a worker whose
  // controller is silent is ended by its control thread. kPeerLost when the controller has closed the line.
  virtual Result<std::string_view> receive() = 0;
  // From any thread. Waits while the controller does not read.
  virtual Result<void> send(std::string_view bytes) = 0;
};

}  // namespace flywheel::runtime
