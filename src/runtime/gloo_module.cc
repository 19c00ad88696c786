// Built alone, as a shared module that links libgloo: see gloo_module.h.
//
// Gloo notices a lost peer only on the messages that wait for that peer, and cannot be interrupted. So every
// member keeps one receive open to each peer, on a slot of its own: it fails the moment a connection breaks,
// and it is how a peer says that it aborts or leaves. A thread waits on it and ends everything else.
#include "runtime/gloo_module.h"

#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

using Buffer = std::unique_ptr<gloo::transport::UnboundBuffer>;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr uint64_t kWatchSlot = uint64_t{1} << 63;
constexpr int64_t kNoticeBytes = 256;  // 'A' (aborts) or 'L' (leaves), then the reason
constexpr milliseconds kGoodbye{200};  // to wait at most for a notice to go out
constexpr milliseconds kLong{100L * 3600 * 1000};

void set_text(FlywheelGlooText* out, const std::string& text) {
  const size_t length = std::min(text.size(), sizeof(out->text) - 1);
  std::memcpy(out->text, text.data(), length);
  out->text[length] = 0;
}

}  // namespace

struct FlywheelGlooExchange {
  std::vector<Buffer> sends, recvs;
};

struct FlywheelGlooMember {
  const int rank, size;
  std::shared_ptr<gloo::transport::Device> device;
  std::shared_ptr<gloo::transport::Context> context;
  std::string address;

  std::mutex mutex;  // of all below
  std::condition_variable changed;
  std::set<FlywheelGlooExchange*> under_way;
  bool is_aborted = false, connecting = false;
  std::string reason;

  std::vector<char> notices, last_words;  // from each peer; ours
  Buffer watch, notice;
  int notices_sent = 0;
  std::thread watcher;

  FlywheelGlooMember(int rank, int size, const char* host) : rank(rank), size(size) {
    gloo::transport::tcp::attr where;
    where.hostname = host;
    device = gloo::transport::tcp::CreateDevice(where);
    context = device->createContext(rank, size);
    context->setTimeout(kLong);
    for (int peer = 0; peer < size; ++peer) {  // each pair listens on a port of its own
      if (peer == rank) {
        append({});
      } else {
        append(context->createPair(peer)->address().bytes());
      }
    }
  }

  void append(const std::vector<char>& bytes) {
    const auto length = static_cast<uint32_t>(bytes.size());
    address.append(reinterpret_cast<const char*>(&length), sizeof(length));
    address.append(bytes.data(), bytes.size());
  }

  // Entry number `index` of a peer's address.
  static std::vector<char> entry(const char* bytes, size_t size, int index) {
    for (size_t at = 0; at + sizeof(uint32_t) <= size; --index) {
      uint32_t length;
      std::memcpy(&length, bytes + at, sizeof(length));
      at += sizeof(length);
      if (length > size - at) break;
      if (index == 0) return {bytes + at, bytes + at + length};
      at += length;
    }
    throw std::runtime_error("malformed endpoint of a peer");
  }

  // A pair waits for its connection without looking at anything else; closing it from here is what ends that.
  void connect(const char* const* addresses, const size_t* sizes, int64_t timeout_ms) {
    {
      std::lock_guard lock(mutex);
      connecting = true;
    }
    bool expired = false;
    std::thread guard([&] {
      std::unique_lock lock(mutex);
      const auto over = [&] { return !connecting || is_aborted; };
      expired = !changed.wait_for(lock, milliseconds(timeout_ms), over);
      if (!connecting) return;
      lock.unlock();
      close_pairs();
    });
    std::string error;
    try {
      for (int peer = 0; peer < size; ++peer) {
        if (peer != rank) context->getPair(peer)->connect(entry(addresses[peer], sizes[peer], rank));
      }
      watch_peers();
    } catch (const std::exception& e) {
      error = e.what();
    }
    {
      std::lock_guard lock(mutex);
      connecting = false;
    }
    changed.notify_all();
    guard.join();
    std::lock_guard lock(mutex);
    if (is_aborted) throw std::runtime_error(reason);
    if (expired) throw std::runtime_error("");  // the caller's clock says the rest
    if (!error.empty()) throw std::runtime_error(error);
  }

  void close_pairs() {
    for (int peer = 0; peer < size; ++peer) {
      if (peer != rank) context->getPair(peer)->close();
    }
  }

  void watch_peers() {
    notices.assign(static_cast<size_t>(size * kNoticeBytes), 0);
    last_words.assign(kNoticeBytes, 0);
    std::lock_guard lock(mutex);
    watch = context->createUnboundBuffer(notices.data(), notices.size());
    notice = context->createUnboundBuffer(last_words.data(), last_words.size());
    for (int peer = 0; peer < size; ++peer) {
      if (peer != rank) watch->recv(peer, kWatchSlot, static_cast<size_t>(peer * kNoticeBytes), kNoticeBytes);
    }
    watcher = std::thread([this] { run_watcher(); });
  }

  void run_watcher() {
    for (;;) {
      int from = -1;
      try {
        if (!watch->waitRecv(&from, kLong)) break;  // abort() or close()
      } catch (const std::exception& e) {
        abort_with(std::string("a peer died or became unreachable: ") + e.what());
        break;
      }
      const char* words = notices.data() + from * kNoticeBytes;
      if (words[0] == 'A') {
        abort_with(std::string(words + 1, strnlen(words + 1, kNoticeBytes - 1)));
        break;
      }
    }
    {
      std::lock_guard lock(mutex);
      if (!is_aborted) return;
    }
    // The peers have been told (abort_with), if they can be; then the connections go, for those that could
    // not.
    flush_notices();
    close_pairs();
  }

  // mutex held.
  void send_notices(char kind, const std::string& why) {
    if (!notice || notices_sent > 0) return;
    last_words[0] = kind;
    std::memcpy(last_words.data() + 1, why.data(),
                std::min(why.size(), static_cast<size_t>(kNoticeBytes - 2)));
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      try {
        notice->send(peer, kWatchSlot);
        ++notices_sent;
      } catch (const std::exception&) {
        continue;  // it is gone: nobody to tell
      }
    }
  }

  void flush_notices() {
    const auto end = Clock::now() + kGoodbye;
    for (int i = 0; i < notices_sent; ++i) {
      const auto left = std::chrono::duration_cast<milliseconds>(end - Clock::now());
      if (left.count() <= 0) return;
      try {
        notice->waitSend(left);
      } catch (const std::exception&) {
        return;
      }
    }
  }

  void abort_with(const std::string& why) {
    {
      std::lock_guard lock(mutex);
      if (is_aborted) return;
      is_aborted = true;
      reason = why;
      send_notices('A', why);
      for (FlywheelGlooExchange* exchange : under_way) interrupt(*exchange);
      if (watch) watch->abortWaitRecv();
    }
    changed.notify_all();
  }

  static void interrupt(FlywheelGlooExchange& exchange) {
    for (Buffer& b : exchange.sends) b->abortWaitSend();
    for (Buffer& b : exchange.recvs) b->abortWaitRecv();
  }

  FlywheelGlooExchange* begin(const FlywheelGlooMessage* sends, int send_count,
                              const FlywheelGlooMessage* recvs, int recv_count, uint64_t slot) {
    auto exchange = std::make_unique<FlywheelGlooExchange>();
    try {
      post(*exchange, sends, send_count, recvs, recv_count, slot);
    } catch (const std::exception&) {
      std::unique_lock lock(mutex);
      if (changed.wait_for(lock, kGoodbye, [&] { return is_aborted; })) throw std::runtime_error(reason);
      throw;
    }
    std::lock_guard lock(mutex);
    if (is_aborted) throw std::runtime_error(reason);
    under_way.insert(exchange.get());
    return exchange.release();
  }

  void post(FlywheelGlooExchange& exchange, const FlywheelGlooMessage* sends, int send_count,
            const FlywheelGlooMessage* recvs, int recv_count, uint64_t slot) {
    const auto buffer = [&](const FlywheelGlooMessage& m) {
      return context->createUnboundBuffer(m.data, static_cast<size_t>(m.bytes));
    };
    for (int i = 0; i < recv_count; ++i) {
      exchange.recvs.push_back(buffer(recvs[i]));
      exchange.recvs.back()->recv(recvs[i].rank, slot);
    }
    for (int i = 0; i < send_count; ++i) {
      exchange.sends.push_back(buffer(sends[i]));
      exchange.sends.back()->send(sends[i].rank, slot);
    }
  }

  void wait(FlywheelGlooExchange* raw, int64_t timeout_ms) {
    const std::unique_ptr<FlywheelGlooExchange> exchange(raw);
    const auto end = Clock::now() + milliseconds(timeout_ms);
    const auto left = [&] {
      // Rounded up, so that what Gloo gives up for lack of time ends after `end`.
      return std::max(milliseconds(1), std::chrono::ceil<milliseconds>(end - Clock::now()));
    };
    std::string error;
    bool complete = true;
    try {
      for (Buffer& b : exchange->recvs) complete = complete && b->waitRecv(left());
      for (Buffer& b : exchange->sends) complete = complete && b->waitSend(left());
    } catch (const std::exception& e) {
      complete = false, error = e.what();
    }
    std::unique_lock lock(mutex);
    under_way.erase(raw);
    if (complete) return;
    // A connection that broke is seen here or by the watcher first; the watcher may know from the peer why.
    if (Clock::now() < end) changed.wait_for(lock, kGoodbye, [&] { return is_aborted; });
    throw std::runtime_error(is_aborted ? reason : error);
  }

  ~FlywheelGlooMember() {
    {
      std::lock_guard lock(mutex);
      if (!is_aborted) send_notices('L', "");
    }
    flush_notices();
    if (watch) watch->abortWaitRecv();
    if (watcher.joinable()) watcher.join();
    watch.reset(), notice.reset();
  }
};

namespace {

// What Gloo throws, or a reason of ours, as an outcome. Nothing leaves this module by exception.
template <typename Body>
int guarded(FlywheelGlooText* error, int64_t timeout_ms, Body&& body) {
  const auto begin = Clock::now();
  try {
    body();
    return kGlooDone;
  } catch (const std::exception& e) {
    set_text(error, e.what());
  } catch (...) {
    set_text(error, "Gloo threw something unknown");
  }
  return Clock::now() - begin >= milliseconds(timeout_ms) ? kGlooTimeout : kGlooFailed;
}

FlywheelGlooMember* open_member(int rank, int size, const char* host, FlywheelGlooText* error) {
  // Gloo writes to sockets without MSG_NOSIGNAL; the default answer to a peer's death would be ours.
  struct sigaction old {};
  if (sigaction(SIGPIPE, nullptr, &old) == 0 && old.sa_handler == SIG_DFL) signal(SIGPIPE, SIG_IGN);
  FlywheelGlooMember* member = nullptr;
  guarded(error, 0, [&] { member = new FlywheelGlooMember(rank, size, host); });
  return member;
}

const char* member_address(FlywheelGlooMember* member, size_t* bytes) {
  *bytes = member->address.size();
  return member->address.data();
}

int connect_member(FlywheelGlooMember* member, const char* const* addresses, const size_t* bytes,
                   int64_t timeout_ms, FlywheelGlooText* error) {
  return guarded(error, timeout_ms, [&] { member->connect(addresses, bytes, timeout_ms); });
}

FlywheelGlooExchange* begin_exchange(FlywheelGlooMember* member, const FlywheelGlooMessage* sends,
                                     int send_count, const FlywheelGlooMessage* recvs, int recv_count,
                                     uint64_t slot, FlywheelGlooText* error) {
  FlywheelGlooExchange* exchange = nullptr;
  guarded(error, 0, [&] { exchange = member->begin(sends, send_count, recvs, recv_count, slot); });
  return exchange;
}

int wait_exchange(FlywheelGlooMember* member, FlywheelGlooExchange* exchange, int64_t timeout_ms,
                  FlywheelGlooText* error) {
  return guarded(error, timeout_ms, [&] { member->wait(exchange, timeout_ms); });
}

void abort_member(FlywheelGlooMember* member, const char* why) {
  FlywheelGlooText ignored;
  guarded(&ignored, 0, [&] { member->abort_with(why); });
}

int member_aborted(FlywheelGlooMember* member, FlywheelGlooText* why) {
  std::lock_guard lock(member->mutex);
  if (member->is_aborted) set_text(why, member->reason);
  return member->is_aborted ? 1 : 0;
}

void close_member(FlywheelGlooMember* member) {
  FlywheelGlooText ignored;
  guarded(&ignored, 0, [&] { delete member; });
}

constexpr FlywheelGlooTable kTable = {kFlywheelGlooVersion, open_member,    member_address,
                                      connect_member,       begin_exchange, wait_exchange,
                                      abort_member,         member_aborted, close_member};

}  // namespace

const FlywheelGlooTable* flywheel_gloo_table() {
  return &kTable;
}
