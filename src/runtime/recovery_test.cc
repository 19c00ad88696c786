// Losses of workers and controllers, and the same bits in spite of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <mutex>
#include <optional>
#include <thread>

#include "base/file.h"
#include "base/hash.h"
#include "base/slowness_for_tests.h"
#include "runtime/controller.h"

namespace flywheel::runtime {
namespace {

using testing::HasSubstr;

ControllerOptions options_in(const std::string& folder) {
  ControllerOptions options;
  options.folder = folder;
  options.run = "test";
  options.sync = LogSync::kProcess;
  options.watermark_interval_ms = 30;
  options.durable_interval_ms = 100;
  options.watermark_cost = 1;
  return options;
}

// `steps` calls; the digest of everything that every rank answered. `at(step)` may do harm.
std::string run_steps(const Mesh& mesh, int steps, const std::function<void(int)>& at = {},
                      const std::string& args = "sleep 1") {
  Sha256 sha;
  std::vector<Future> futures{mesh.call("test.create")};
  for (int step = 0; step < steps; ++step) {
    if (at) at(step);
    futures.push_back(mesh.call(step % 5 == 4 ? "test.sum" : "test.step", args, {.cursor = step}));
    if (futures.size() % 8 != 0) continue;
    EXPECT_TRUE(futures.back().wait(Deadline::after_ms(20'000)).ok());
  }
  for (const Future& future : futures) {
    const auto digests = future.digests(Deadline::after_ms(20'000));
    if (!digests.ok()) return digests.error().to_string();
    for (const uint64_t digest : *digests) sha.update(std::to_string(digest));
  }
  for (int rank = 0; rank < mesh.shape().size(); ++rank)
    sha.update(mesh.call("test.step", "", {.cursor = 7}).get(rank).value());
  return sha.hex();
}

std::string undisturbed(int ranks, int steps) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder / "run")).value();
  const Mesh mesh = controller->mesh("m", {{"data", ranks}}).value();
  return run_steps(mesh, steps);
}

void hurt(const Mesh& mesh, int rank, int signal) {
  const auto pid = static_cast<pid_t>(mesh.status().pids.at(static_cast<size_t>(rank)));
  if (pid > 0) ::kill(pid, signal);
}

TEST(Recovery, AKilledWorkerIsReplacedAndNoBitChanges) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder / "run")).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  const std::string hash = run_steps(mesh, 120, [&](int step) {
    if (step == 60) hurt(mesh, 1, SIGKILL);
    if (step == 90) hurt(mesh, 0, SIGKILL);
  });
  EXPECT_EQ(hash, undisturbed(2, 120));
  EXPECT_EQ(mesh.status().recoveries, 2);
  EXPECT_GE(mesh.status().watermarks, 1u);
  EXPECT_NE(mesh.status().last_recovery.from, RestoredFrom::kDisk) << "a peer has all pieces in memory";
  EXPECT_LT(mesh.status().last_recovery_seconds, 2.0 * kSlowness);
}

// From a signal to a worker until its loss is reported. On a busy machine any thread may be late for once:
// the best of some losses counts, and the first one that is quick enough will do.
double seconds_until_noticed(int signal, double quick) {
  const TempFolder folder;
  std::mutex mutex;
  std::optional<double> seconds;
  Stopwatch since;
  auto options = options_in(folder / "run");
  options.on_failure = [&](const Failure& failure) {
    const std::scoped_lock lock(mutex);
    if (failure.who == "test/m/1" && !seconds) seconds = since.seconds();
  };
  auto controller = Controller::open(options).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  EXPECT_TRUE(mesh.call("test.create").wait(Deadline::after_ms(20'000)).ok());
  double best = 1e9;
  for (int loss = 0; loss < 5 && best >= quick; ++loss) {
    {
      const std::scoped_lock lock(mutex);
      seconds.reset();
      since.restart();
    }
    hurt(mesh, 1, signal);
    const auto noticed = [&] {
      const std::scoped_lock lock(mutex);
      return seconds.has_value();
    };
    for (const Deadline until = Deadline::after_ms(20'000); !until.expired() && !noticed();)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_TRUE(noticed());
    EXPECT_TRUE(mesh.call("test.step").wait(Deadline::after_ms(20'000)).ok());
    const std::scoped_lock lock(mutex);
    best = std::min(best, seconds.value_or(1e9));
  }
  return best;
}

TEST(Recovery, ALossIsNoticedWithinASecond) {
  const double killed = seconds_until_noticed(SIGKILL, 0.2 * kSlowness);
  const double stopped = seconds_until_noticed(SIGSTOP, 1.0 * kSlowness);
  EXPECT_LT(killed, 0.2 * kSlowness);
  EXPECT_LT(stopped, 1.0 * kSlowness);  // 800 ms without a heartbeat, which come every 100
  EXPECT_GT(stopped, 0.6);
}

TEST(Recovery, AStoppedWorkerIsFencedAndNoBitChanges) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder / "run")).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  const std::string hash = run_steps(mesh, 60, [&](int step) {
    if (step == 30) hurt(mesh, 1, SIGSTOP);
  });
  EXPECT_EQ(hash, undisturbed(2, 60));
  EXPECT_EQ(mesh.status().recoveries, 1);
}

// A recovery is counted when it is over, with what it cost.
TEST(Recovery, ALossIsOverWhenAllIsComputedAgain) {
  const TempFolder folder;
  auto options = options_in(folder / "run");
  options.watermark_interval_ms = 1'000'000;
  auto controller = Controller::open(options).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  std::vector<Future> futures{mesh.call("test.create")};
  for (int step = 0; step < 20; ++step)
    futures.push_back(mesh.call("test.step", "sleep 1", {.cursor = step}));
  futures.push_back(mesh.call("test.pid"));  // by chance: it is not done again
  ASSERT_TRUE(futures.back().wait(Deadline::after_ms(20'000)).ok());
  hurt(mesh, 1, SIGKILL);
  for (const Deadline until = Deadline::after_ms(20'000); !until.expired() && mesh.status().recoveries == 0;)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const MeshStatus status = mesh.status();
  ASSERT_EQ(status.recoveries, 1);
  EXPECT_TRUE(status.running);
  const Recovery& last = status.last_recovery;
  EXPECT_EQ(last.done_again, (std::map<std::string, int64_t>{{"test.create", 1}, {"test.step", 20}}));
  EXPECT_GT(last.seconds_to_replay, 0);
  EXPECT_GE(last.seconds, last.seconds_to_replay + 0.020) << "20 steps of a millisecond";
  EXPECT_EQ(last.interval_seconds, 1000);
  EXPECT_EQ(last.from, RestoredFrom::kBeginning) << "there was no snapshot";
  EXPECT_EQ(status.last_recovery_seconds, last.seconds_to_replay);
}

// Where failures are rare, the interval grows from the first snapshot on, whose cost is then known.
TEST(Recovery, YoungsFormulaStretchesTheInterval) {
  const TempFolder folder;
  auto options = options_in(folder / "run");
  options.young_interval = true;
  options.worker_mtbf_hours = 1e9;
  auto controller = Controller::open(options).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  EXPECT_EQ(mesh.status().young_interval_seconds, 0) << "no snapshot has been taken";
  EXPECT_EQ(mesh.status().watermark_interval_seconds, 0.03);
  run_steps(mesh, 200);
  const MeshStatus status = mesh.status();
  EXPECT_EQ(status.watermarks, 1u);
  EXPECT_GT(status.young_interval_seconds, 60);
  EXPECT_NEAR(status.watermark_interval_seconds / status.young_interval_seconds, 1, 1e-3);
}

// Whatever else asks for them: each command here is as many as may be replayed.
TEST(Recovery, SnapshotsTakeTheirShareOfTheTimeAtMost) {
  const TempFolder folder;
  auto options = options_in(folder / "run");
  options.watermark_interval_ms = 1;
  options.watermark_max_commands = 1;
  options.watermark_cost = 0.02;
  auto controller = Controller::open(options).value();
  const Stopwatch clock;
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  run_steps(mesh, 600);
  const MeshStatus status = mesh.status();
  EXPECT_GE(status.watermarks, 2u);
  const double paid_for = status.watermarks_cost_seconds - status.last_watermark_cost_seconds;
  EXPECT_GT(paid_for, 0);
  EXPECT_LE(paid_for, 0.02 * clock.seconds()) << "of " << status.watermarks << " snapshots";
}

TEST(Recovery, AWorkerThatTheProgramGivesUpIsReplacedAndNoBitChanges) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder / "run")).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  const std::vector<int64_t> before = mesh.status().pids;
  const std::string hash = run_steps(mesh, 60, [&](int step) {
    if (step == 30) mesh.replace({1}, "it computes wrongly");
  });
  EXPECT_EQ(hash, undisturbed(2, 60));
  EXPECT_EQ(mesh.status().recoveries, 1);
  EXPECT_EQ(mesh.status().pids[0], before[0]);
  EXPECT_NE(mesh.status().pids[1], before[1]);
  ASSERT_EQ(controller->failures().size(), 1u);
  EXPECT_EQ(controller->failures()[0].to_string(), "test/m/1: it computes wrongly; started again");
}

TEST(Recovery, AllWorkersLostGoBackToTheDisk) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder / "run")).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  const std::string hash = run_steps(mesh, 200, [&](int step) {
    if (step != 150) return;
    EXPECT_TRUE(controller->checkpoint(Deadline::after_ms(5000)).ok());
    EXPECT_GT(mesh.status().durable_watermark, 0u);
    hurt(mesh, 0, SIGKILL), hurt(mesh, 1, SIGKILL);
  });
  EXPECT_EQ(hash, undisturbed(2, 200));
  EXPECT_EQ(mesh.status().last_recovery.from, RestoredFrom::kDisk);
}

// A snapshot that finds no room to come back to is sound: it stays for whoever takes the run up when there is
// some.
TEST(Recovery, WithoutRoomToGoBackTheRunEndsAndItsSnapshotsStay) {
  const auto values_of = [](const Mesh& mesh, const std::function<void()>& harm) {
    std::vector<std::string> values;
    (void)mesh.call("test.create").wait(Deadline::after_ms(20'000));
    for (int step = 0; step < 40; ++step) {
      if (step == 30 && harm) harm();
      const auto value = mesh.call("test.step", "", {.cursor = step}).get(1, Deadline::after_ms(20'000));
      if (!value.ok()) {
        EXPECT_EQ(value.error().code, ErrorCode::kFull);
        EXPECT_THAT(value.error().message, testing::AllOf(HasSubstr("cannot go back to watermark"),
                                                          HasSubstr("no room for the counter")));
        break;
      }
      values.push_back(*value);
    }
    return values;
  };
  const TempFolder folder, other;
  const std::string full = folder / "full";
  const MeshOptions with_full{.env = {{"FLYWHEEL_TEST_FULL", full}}};
  {
    auto controller = Controller::open(options_in(folder / "run")).value();
    const Mesh mesh = controller->mesh("m", {{"data", 2}}, with_full).value();
    const auto values = values_of(mesh, [&] {
      EXPECT_TRUE(controller->checkpoint(Deadline::after_ms(20'000)).ok());
      EXPECT_TRUE(write_file(full, "").ok());
      hurt(mesh, 0, SIGKILL), hurt(mesh, 1, SIGKILL);  // all memory is gone
    });
    EXPECT_EQ(values.size(), 30u);
  }
  EXPECT_THAT(list_folder(folder / "run/watermarks/m").value(), testing::Not(testing::IsEmpty()));
  ASSERT_TRUE(remove_all(full).ok());
  auto controller = Controller::open(options_in(folder / "run")).value();
  const auto again = values_of(controller->mesh("m", {{"data", 2}}, with_full).value(), {});
  auto undisturbed_controller = Controller::open(options_in(other / "run")).value();
  const auto undisturbed = values_of(undisturbed_controller->mesh("m", {{"data", 2}}, with_full).value(), {});
  EXPECT_EQ(again, undisturbed);
  EXPECT_EQ(again.size(), 40u);
}

TEST(Recovery, ASingleWorkerReplaysFromItsLog) {
  const TempFolder folder;
  auto options = options_in(folder / "run");
  options.durable_interval_ms = 1'000'000;
  auto controller = Controller::open(options).value();
  const Mesh mesh = controller->mesh("m", {{"data", 1}}).value();
  const std::string hash = run_steps(mesh, 50, [&](int step) {
    if (step == 40) hurt(mesh, 0, SIGKILL);
  });
  EXPECT_EQ(hash, undisturbed(1, 50));
}

TEST(Recovery, AFailedStatefulCallHasHappenedNowhere) {
  std::string with, without;
  for (std::string* out : {&with, &without}) {
    const TempFolder folder;
    auto controller = Controller::open(options_in(folder / "run")).value();
    const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
    (void)mesh.call("test.create").wait();
    (void)mesh.call("test.step", "", {.generator_key = 1}).wait();
    if (out == &with) {
      for (const char* how : {"fail", "fail on 1", "throw"}) {
        const Future failed = mesh.call("test.step", how);
        const Future after = mesh.call("test.echo", "after");  // pipelined behind it
        EXPECT_FALSE(failed.wait(Deadline::after_ms(5000)).ok()) << how;
        EXPECT_EQ(after.get(1, Deadline::after_ms(5000)).value(), "after");
      }
    }
    const Future last = mesh.call("test.step", "", {.generator_key = 2});
    *out = last.get(0, Deadline::after_ms(5000)).value() + last.get(1).value();
  }
  EXPECT_EQ(with, without);
}

TEST(Recovery, ACallThatKillsItsWorkersIsGivenUpAndTheRestGoesOn) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder / "run")).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  (void)mesh.call("test.create").wait();
  const Future deadly = mesh.call("test.die");
  const Future after = mesh.call("test.step");
  const auto died = deadly.wait(Deadline::after_ms(20'000));
  ASSERT_FALSE(died.ok());
  EXPECT_EQ(died.error().code, ErrorCode::kPeerLost);
  EXPECT_THAT(died.error().message, HasSubstr("ended its workers"));
  EXPECT_TRUE(after.wait(Deadline::after_ms(5000)).ok());
}

TEST(Recovery, ACallPastItsDeadlineFailsAndTheMeshGoesOn) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder / "run")).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  (void)mesh.call("test.create").wait();
  const auto late =
      mesh.call("test.step", "sleep 60000", {.deadline_ms = 100}).wait(Deadline::after_ms(10'000));
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, ErrorCode::kDeadline);
  EXPECT_TRUE(mesh.call("test.step").wait(Deadline::after_ms(5000)).ok());
}

TEST(Recovery, ANondeterministicResultIsKeptAndNeverMadeTwice) {
  const TempFolder folder;
  auto options = options_in(folder / "run");
  options.watermark_interval_ms = 1'000'000;
  auto controller = Controller::open(options).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  (void)mesh.call("test.create").wait();
  const Future pid = mesh.call("test.pid");
  const std::string before = pid.get(1).value();
  hurt(mesh, 1, SIGKILL);
  const Future copy = mesh.call("test.join", "", {.uses = {pid.sequence()}});
  EXPECT_EQ(copy.get(1, Deadline::after_ms(5000)).value(), before);
  EXPECT_NE(std::to_string(mesh.status().pids[1]), before);
  EXPECT_EQ(mesh.status().recoveries, 1);
}

TEST(Recovery, AnOperationThatLiesAboutBeingDeterministicIsFoundOut) {
  const TempFolder folder;
  auto options = options_in(folder / "run");
  options.watermark_interval_ms = 1'000'000;
  auto controller = Controller::open(options).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  const Future lie = mesh.call("test.liar");
  EXPECT_TRUE(lie.wait(Deadline::after_ms(5000)).ok());
  hurt(mesh, 1, SIGKILL);
  const auto found = mesh.call("test.nothing").wait(Deadline::after_ms(5000));
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(found.error().message, HasSubstr("does not give the same result twice"));
}

TEST(Recovery, AnOperationThatFailsWhenReplayedSaysWhy) {
  const TempFolder folder;
  auto options = options_in(folder / "run");
  options.watermark_interval_ms = 1'000'000;
  auto controller = Controller::open(options).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  const std::string input = folder / "input";
  ASSERT_TRUE(write_file(input, "what it says").ok());
  EXPECT_TRUE(mesh.call("test.read", input).wait(Deadline::after_ms(5000)).ok());
  ASSERT_TRUE(remove_all(input).ok());
  hurt(mesh, 1, SIGKILL);
  const auto found = mesh.call("test.nothing").wait(Deadline::after_ms(5000));
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(found.error().message,
              testing::ContainsRegex("\\(test.read\\) on rank . failed, which had a result before: "));
  EXPECT_THAT(found.error().message, HasSubstr(input));
  EXPECT_THAT(found.error().message, testing::Not(HasSubstr("same result twice")));
}

// A program in a process of its own, so that it can be killed: writes its hash to a file.
pid_t start_program(const std::string& folder, int steps) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  const std::string text = std::to_string(steps);
  ::execl("/proc/self/exe", "runtime_test", "program", folder.c_str(), text.c_str(), nullptr);
  ::_exit(127);
}

TEST(Recovery, AKilledControllerIsTakenUpByTheSameProgram) {
  const TempFolder folder;
  int killed = 0;
  for (int round = 0; round < 20 && !path_exists(folder / "hash"); ++round) {
    const pid_t pid = start_program(folder.path(), 400);
    int status = 0;
    for (const Deadline until = Deadline::after_ms(250 + 100 * round); !until.expired();) {
      if (::waitpid(pid, &status, WNOHANG) == pid) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    if (!path_exists(folder / "hash")) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, &status, 0);
      ++killed;
    }
  }
  EXPECT_GT(killed, 0);
  ASSERT_TRUE(path_exists(folder / "hash"));
  EXPECT_EQ(read_file(folder / "hash").value(), undisturbed(2, 400));
}

TEST(Recovery, AnotherProgramDoesNotTakeUpTheRun) {
  const TempFolder folder;
  for (const char* args : {"first", "second"}) {
    auto controller = Controller::open(options_in(folder / "run")).value();
    const Mesh mesh = controller->mesh("m", {{"data", 1}}).value();
    const auto answer = mesh.call("test.echo", args).wait(Deadline::after_ms(5000));
    if (args == std::string("first")) {
      EXPECT_TRUE(answer.ok());
    } else {
      ASSERT_FALSE(answer.ok());
      EXPECT_THAT(answer.error().message, HasSubstr("command 1 is test.echo(5 bytes, cursor 0) in the log"));
    }
  }
}

}  // namespace

int program_main(const std::string& folder, int steps) {
  auto controller = Controller::open(options_in(folder + "/run"));
  if (!controller.ok()) return 1;
  auto mesh = (*controller)->mesh("m", {{"data", 2}});
  if (!mesh.ok()) return 1;
  const std::string hash = run_steps(*mesh, steps);
  return write_file(folder + "/hash", hash).ok() ? 0 : 1;
}

}  // namespace flywheel::runtime
