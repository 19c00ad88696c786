#include "base/process.h"

#include <gtest/gtest.h>

#include "base/file.h"

namespace flywheel {
namespace {

TEST(Process, CollectsOutputAndExitCode) {
  const auto out =
      run_process({"sh", "-c", "cat; echo err >&2; exit 3"}, {.input = std::string(200'000, 'x')});
  ASSERT_TRUE(out.ok()) << out.error().to_string();
  EXPECT_EQ(out->exit_code, 3);
  EXPECT_EQ(out->stdout_text, std::string(200'000, 'x'));
  EXPECT_EQ(out->stderr_text, "err\n");
}

TEST(Process, MissingProgramAndDeadline) {
  EXPECT_EQ(run_process({"no-such-program-here"}).error().code, ErrorCode::kNotFound);
  const Stopwatch clock;
  EXPECT_EQ(run_process({"sleep", "30"}, {.deadline = Deadline::after_ms(100)}).error().code,
            ErrorCode::kDeadline);
  EXPECT_EQ(run_process({"sh", "-c", "exec >&- 2>&-; sleep 30"}, {.deadline = Deadline::after_ms(100)})
                .error()
                .code,
            ErrorCode::kDeadline);
  EXPECT_EQ(run_process({"yes"}, {.max_output_bytes = 100'000}).error().code, ErrorCode::kFull);
  EXPECT_LT(clock.seconds(), 5);
}

TEST(Process, EnvFolderOutputAndSignals) {
  const TempFolder folder;
  const std::string log = folder / "log";
  Process child = Process::start({"sh", "-c", "echo $WHO; pwd; exec sleep 30"},
                                 {.env = {{"WHO", "me"}}, .folder = folder.path(), .output_file = log})
                      .value();
  for (int i = 0; i < 500 && read_file(log).value_or("").size() < 4; ++i) {
    (void)child.wait(Deadline::after_ms(10));
  }
  EXPECT_TRUE(child.running());
  EXPECT_EQ(child.stop().signal, SIGTERM);
  EXPECT_EQ(read_file(log).value(), "me\n" + folder.path() + "\n");
  EXPECT_FALSE(child.running());
}

TEST(Process, DestructorKills) {
  pid_t pid;
  {
    Process child = Process::start({"sleep", "30"}).value();
    pid = child.pid();
  }
  EXPECT_EQ(kill(pid, 0), -1);
}

}  // namespace
}  // namespace flywheel
