#include "base/process_liveness.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

namespace flywheel {
namespace {

int64_t wall_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

TEST(ProcessLiveness, TellsTheLivingFromTheDeadAndFromLaterOnes) {
  const int64_t before = wall_ms();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) ::pause();
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_TRUE(process_lives(child, wall_ms()));
  EXPECT_FALSE(process_lives(child, before)) << "the number was somebody else's then";
  EXPECT_FALSE(process_is_stopped(child));
  ::kill(child, SIGSTOP);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  EXPECT_TRUE(process_is_stopped(child));
  EXPECT_TRUE(process_lives(child, wall_ms()));
  ::kill(child, SIGKILL);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  EXPECT_FALSE(process_lives(child, wall_ms())) << "a zombie";
  ::waitpid(child, nullptr, 0);
  EXPECT_FALSE(process_lives(child, wall_ms()));
  EXPECT_TRUE(process_lives(::getpid(), wall_ms()));
  EXPECT_TRUE(process_lives(1, wall_ms()));
  EXPECT_FALSE(process_lives(0, wall_ms()));
  EXPECT_FALSE(process_lives(-1, wall_ms()));
}

}  // namespace
}  // namespace flywheel
