#include "runtime/rendezvous.h"

#include <gtest/gtest.h>

#include <thread>

namespace flywheel::runtime {
namespace {

TEST(LocalRendezvous, GivesEveryMemberEverybodysBytesInRankOrder) {
  LocalRendezvous rendezvous;
  std::vector<std::vector<std::string>> seen(4);
  std::vector<std::thread> members;
  for (int rank = 3; rank >= 0; --rank) {
    members.emplace_back([&, rank] {
      seen[static_cast<size_t>(rank)] =
          rendezvous.exchange("g/e1", rank, 4, "at " + std::to_string(rank), Deadline::after_ms(5000))
              .value();
    });
  }
  for (auto& member : members) member.join();
  for (const auto& all : seen) EXPECT_EQ(all, (std::vector<std::string>{"at 0", "at 1", "at 2", "at 3"}));
}

TEST(LocalRendezvous, SaysHowManyCame) {
  LocalRendezvous rendezvous;
  const auto result = rendezvous.exchange("alone", 0, 2, "x", Deadline::after_ms(20));
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kDeadline);
  EXPECT_EQ(result.error().message, "1 of 2 members came to alone in time");
}

}  // namespace
}  // namespace flywheel::runtime
