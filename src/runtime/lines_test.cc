#include "runtime/lines.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "base/file.h"
#include "base/philox.h"
#include "base/slowness_for_tests.h"

namespace flywheel::runtime {
namespace {

using testing::ElementsAre;

constexpr auto kPatienceMs = static_cast<int64_t>(20'000 * kSlowness);

// Between hosts: ThreadSanitizer finds a race, and drops it (races.txt), at every 8 bytes that libzmq hands
// over.
#ifdef __SANITIZE_THREAD__
constexpr bool kBytesAreDear = true;
#else
constexpr bool kBytesAreDear = false;
#endif

std::string random_bytes(uint64_t seed, size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<char>(Philox::at(seed, 0, i / 4, 0) >> (i % 4 * 8));
  return bytes;
}

// A controller's ends, polled as its loop does.
class Listener {
 public:
  Listener(Transport& transport, const LineEndpoints& where)
      : lines(Lines::listen(transport, where,
                            {[this](std::string_view message) { messages.emplace_back(message); },
                             [this](const std::string& identity) { closed.push_back(identity); }},
                            [this] { changed_ = true; })
                  .value()) {}
  // Until `done` or the patience ends.
  template <typename Done>
  bool turn_until(const Done& done) {
    for (const Deadline deadline = Deadline::after_ms(kPatienceMs); !done();) {
      if (deadline.expired()) return false;
      if (std::exchange(changed_, false)) {
        items_.clear();
        lines->add_items(items_);
      }
      zmq::poll(items_, std::chrono::milliseconds(5));
      lines->read(items_);
      lines->take(items_);
    }
    return true;
  }
  bool send(const std::string& to, const std::string& bytes) {  // as soon as it is connected
    return turn_until([&] { return lines->send_to(to, bytes).ok(); });
  }

  std::vector<std::string> messages, closed;
  std::unique_ptr<Lines> lines;

 private:
  bool changed_ = true;
  std::vector<zmq::pollitem_t> items_;
};

class LinesTest : public testing::TestWithParam<bool> {
 protected:
  static Keys keys() { return GetParam() ? Keys::make().value() : Keys{}; }
  LineEndpoints where() const {
    if (GetParam()) return {"tcp://127.0.0.1:*", "tcp://127.0.0.1:*"};
    return {"unix:" + folder_ / "line", ""};
  }
  std::unique_ptr<Line> connect(const std::string& identity) {
    return Line::connect(transport_, listener_->lines->endpoints(), identity).value();
  }
  TempFolder folder_;
  Transport transport_{keys()};
  std::optional<Listener> listener_{std::in_place, transport_, where()};
};

INSTANTIATE_TEST_SUITE_P(Here, LinesTest, testing::Values(false));
INSTANTIATE_TEST_SUITE_P(BetweenHosts, LinesTest, testing::Values(true));

TEST_P(LinesTest, MessagesGoBothWaysInOrder) {
  const auto a = connect("a"), b = connect("b");
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(listener_->send("a", "to a " + std::to_string(i)));
    ASSERT_TRUE(listener_->send("b", ""));
  }
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(a->receive().value(), "to a " + std::to_string(i));
    EXPECT_EQ(b->receive().value(), "");
    ASSERT_TRUE(a->send("from a " + std::to_string(i)).ok());
  }
  ASSERT_TRUE(listener_->turn_until([&] { return listener_->messages.size() == 100; }));
  for (size_t i = 0; i < 100; ++i) EXPECT_EQ(listener_->messages[i], "from a " + std::to_string(i));
}

// Sizes around those of buffers, up to what the kernel takes in a hundred pieces.
TEST_P(LinesTest, MessagesOfAnySizeArriveAsTheyAre) {
  const auto line = connect("a");
  std::vector<std::string> sent;
  for (uint64_t seed = 0; const size_t size : {0, 1, 7, 8, 9, 4096, 262'135, 262'136, 262'137, 300'000,
                                               20'000'000, 3, 262'144, 10'000'000, 0, 5}) {
    const bool dear = kBytesAreDear && GetParam();
    sent.push_back(random_bytes(++seed, dear ? std::min<size_t>(size, 4096) : size));
  }
  std::thread worker([&] {  // sends each back
    for (size_t i = 0; i < sent.size(); ++i) {
      const std::string bytes(line->receive().value());
      EXPECT_EQ(bytes, sent[i]) << i;
      EXPECT_TRUE(line->send(bytes).ok());
    }
  });
  for (const auto& bytes : sent) EXPECT_TRUE(listener_->send("a", bytes));
  EXPECT_TRUE(listener_->turn_until([&] { return listener_->messages.size() == sent.size(); }));
  worker.join();
  EXPECT_TRUE(listener_->messages == sent);
}

TEST_P(LinesTest, AWorkerThatDoesNotReadHoldsUpNobody) {
  if (kBytesAreDear && GetParam()) GTEST_SKIP() << "50 MB";
  const auto slow = connect("slow"), quick = connect("quick");
  const std::string bytes = random_bytes(1, 1 << 20);
  const Stopwatch clock;
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(listener_->send("slow", bytes));
  ASSERT_TRUE(listener_->send("quick", "now"));
  EXPECT_EQ(quick->receive().value(), "now");
  EXPECT_LT(clock.seconds(), 2 * kSlowness);
  std::thread reads([&] {
    for (int i = 0; i < 50; ++i) EXPECT_TRUE(slow->receive().value() == bytes);
    EXPECT_TRUE(slow->send("all").ok());
  });
  EXPECT_TRUE(listener_->turn_until([&] { return !listener_->messages.empty(); }));
  reads.join();
}

TEST_P(LinesTest, SeveralThreadsOfAWorkerSend) {
  const size_t size = kBytesAreDear && GetParam() ? 50 : 5000;
  const auto line = connect("a");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i)
        EXPECT_TRUE(line->send(std::string(size, static_cast<char>('a' + t))).ok());
    });
  }
  EXPECT_TRUE(listener_->turn_until([&] { return listener_->messages.size() == 800; }));
  for (auto& thread : threads) thread.join();
  std::map<std::string, int> counts;
  for (const auto& message : listener_->messages) ++counts[message];
  EXPECT_EQ(counts.size(), 4U);
  for (const auto& [message, count] : counts) EXPECT_EQ(count, 200) << message.substr(0, 9);
}

TEST_P(LinesTest, WhoIsNotThereCannotBeSentTo) {
  EXPECT_EQ(listener_->lines->send_to("nobody", "x").error().code, ErrorCode::kPeerLost);
  auto line = connect("a");
  ASSERT_TRUE(listener_->send("a", "x"));
  line.reset();
  EXPECT_TRUE(listener_->turn_until([&] { return !listener_->lines->send_to("a", "x").ok(); }));
}

class LocalLinesTest : public LinesTest {
 protected:
  // A worker that says what no worker says.
  int connect_raw() const {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    const std::string path = folder_ / "line";
    std::memcpy(name.sun_path, path.data(), path.size());
    EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
    return fd;
  }
  static void say(int fd, uint64_t length, const std::string& bytes) {
    std::string all(reinterpret_cast<const char*>(&length), sizeof length);
    all += bytes;
    EXPECT_EQ(::send(fd, all.data(), all.size(), MSG_NOSIGNAL), static_cast<ssize_t>(all.size()));
  }
};

INSTANTIATE_TEST_SUITE_P(Here, LocalLinesTest, testing::Values(false));

TEST_P(LocalLinesTest, AClosedLineIsToldOfAfterItsLastMessage) {
  auto line = connect("a");
  ASSERT_TRUE(line->send("last words").ok());
  line.reset();
  ASSERT_TRUE(listener_->turn_until([&] { return !listener_->closed.empty(); }));
  EXPECT_THAT(listener_->closed, ElementsAre("a"));
  EXPECT_THAT(listener_->messages, ElementsAre("last words"));
  // In the middle of a message: no message.
  const int fd = connect_raw();
  say(fd, 1, "b");
  say(fd, 100, "half");
  ::close(fd);
  ASSERT_TRUE(listener_->turn_until([&] { return listener_->closed.size() == 2; }));
  EXPECT_THAT(listener_->messages, ElementsAre("last words"));
}

TEST_P(LocalLinesTest, TheWorkerIsToldWhenTheControllerGoes) {
  const auto line = connect("a");
  ASSERT_TRUE(listener_->send("a", "x"));
  const LineEndpoints where = listener_->lines->endpoints();
  listener_.reset();
  EXPECT_EQ(line->receive().value(), "x");
  EXPECT_EQ(line->receive().error().code, ErrorCode::kPeerLost);
  EXPECT_EQ(line->send("y").error().code, ErrorCode::kPeerLost);
  EXPECT_EQ(Line::connect(transport_, where, "b").error().code, ErrorCode::kPeerLost);
}

TEST_P(LocalLinesTest, WhatNoWorkerSaysEndsThatLineAlone) {
  const auto good = connect("good");
  const int silent = connect_raw(), huge = connect_raw(), nameless = connect_raw();
  say(huge, 1, "h");
  say(huge, ~uint64_t{0}, "x");
  say(nameless, 0, "");
  ASSERT_TRUE(listener_->turn_until([&] { return !listener_->closed.empty(); }));
  EXPECT_THAT(listener_->closed, ElementsAre("h"));
  ASSERT_TRUE(good->send("still here").ok());
  EXPECT_TRUE(listener_->turn_until([&] { return !listener_->messages.empty(); }));
  char byte = 0;
  EXPECT_EQ(::recv(nameless, &byte, 1, 0), 0);
  for (const int fd : {silent, huge, nameless}) ::close(fd);
}

TEST_P(LocalLinesTest, APathThatIsTooLongIsSaid) {
  const auto refused = Lines::listen(transport_, {"unix:/" + std::string(200, 'x'), ""}, {}, {});
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalid);
  EXPECT_EQ(Lines::listen(transport_, {"unix:/no/such/folder/line", ""}, {}, {}).error().code,
            ErrorCode::kNotFound);
}

}  // namespace
}  // namespace flywheel::runtime
