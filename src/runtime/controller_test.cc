#include "runtime/controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <memory>

#include "base/deadline.h"
#include "base/file.h"
#include "runtime/launcher.h"

namespace flywheel::runtime {
namespace {

using testing::HasSubstr;

ControllerOptions options_in(const TempFolder& folder) {
  ControllerOptions options;
  options.folder = folder / "run";
  options.run = "test";
  options.sync = LogSync::kProcess;
  return options;
}

TEST(Controller, CallsOperationsOnAMeshAndItsSlices) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder)).value();
  EXPECT_FALSE(controller->resumed());
  const Mesh mesh = controller->mesh("train", {{"data", 2}, {"tensor", 2}}).value();
  const Future where = mesh.call("test.where");
  EXPECT_EQ(where.get(0).value(), "train 0");
  EXPECT_EQ(where.get(3).value(), "train 3");
  const Mesh slice = mesh.slice({{"tensor", 1}}).value();
  EXPECT_EQ(slice.ranks(), (std::vector<int>{1, 3}));
  const Future there = slice.call("test.where", "", {.want_value = true});
  EXPECT_EQ(there.get(1).value(), "train 3");
  EXPECT_EQ(mesh.status().pids.size(), 4u);
  EXPECT_TRUE(controller->close().ok());
}

TEST(Controller, ResultsStayOnTheWorkersAndCanBeUsedThere) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder)).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  const Future a = mesh.call("test.echo", "left ");
  const Future b = mesh.call("test.where");
  const Future joined = mesh.call("test.join", "", {.uses = {a.sequence(), b.sequence()}});
  EXPECT_EQ(joined.get(1).value(), "left m 1");
  const auto digests = joined.digests().value();
  EXPECT_NE(digests[0], digests[1]);
  const uint64_t gone = [&] { return mesh.call("test.echo", "x").sequence(); }();
  (void)mesh.call("test.nothing").wait();
  const auto missing = mesh.call("test.join", "", {.uses = {gone}}).wait();
  ASSERT_FALSE(missing.ok());
  EXPECT_THAT(missing.error().message, HasSubstr("has no result of command"));
}

TEST(Controller, TellsWhatIsWrongWithACall) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder)).value();
  const Mesh mesh = controller->mesh("m", {{"data", 1}}).value();
  const auto unknown = mesh.call("test.ecco").wait();
  EXPECT_EQ(unknown.error().message, "no operation test.ecco in this program; did you mean test.echo?");
  EXPECT_EQ(controller->mesh("m", {{"data", 1}}).error().code, ErrorCode::kExists);
  EXPECT_EQ(controller->mesh("n", {{"data", 0}}).error().code, ErrorCode::kInvalid);
  EXPECT_FALSE(mesh.slice({{"data", 3}}).ok());
  const auto stateless = mesh.call("test.step").wait();
  EXPECT_THAT(stateless.error().message, HasSubstr("has no state counter"));
}

TEST(Controller, RandomNumbersFollowFromSeedSequenceAndRank) {
  std::vector<std::string> seen;
  for (int round = 0; round < 2; ++round) {
    const TempFolder folder;
    auto options = options_in(folder);
    options.seed = 7;
    auto controller = Controller::open(options).value();
    const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
    const Future first = mesh.call("test.random"), second = mesh.call("test.random");
    for (const Future& future : {first, second}) {
      for (int rank = 0; rank < 2; ++rank) seen.push_back(future.get(rank).value());
    }
  }
  EXPECT_EQ(std::vector<std::string>(seen.begin(), seen.begin() + 4),
            std::vector<std::string>(seen.begin() + 4, seen.end()));
  EXPECT_EQ(std::set<std::string>(seen.begin(), seen.end()).size(), 4u);
}

TEST(Controller, AnotherControllerOfTheSameRunIsRefused) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder)).value();
  const auto second = Controller::open(options_in(folder));
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
}

// Stops the first process that it starts at once, as a debugger or a SIGSTOP may.
class StopsTheFirst : public Launcher {
 public:
  Result<std::unique_ptr<WorkerProcess>> start(const WorkerSpec& spec) override {
    ASSIGN_OR_RETURN(auto process, local_->start(spec));
    if (started_++ == 0) ::kill(static_cast<pid_t>(std::stoi(process->describe().substr(4))), SIGSTOP);
    return process;
  }
  int started() const { return started_; }

 private:
  std::unique_ptr<Launcher> local_ = make_local_launcher({});
  int started_ = 0;
};

TEST(Controller, AWorkerThatIsStoppedWhileItStartsIsReplaced) {
  const TempFolder folder;
  const auto launcher = std::make_shared<StopsTheFirst>();
  ControllerOptions options = options_in(folder);
  options.launcher = launcher;
  auto controller = Controller::open(options).value();
  const Stopwatch watch;
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  EXPECT_EQ(mesh.call("test.where").get(0).value(), "m 0");
  EXPECT_LT(watch.seconds(), 20);     // a third of start_timeout_ms
  EXPECT_GE(launcher->started(), 3);  // on a busy machine another one may be late with its heartbeat
}

// A want of the machine is no result: when it is mended the run goes on.
TEST(Controller, AWorkerThatLacksWhatItNeedsDoesNotComeUp) {
  const TempFolder folder;
  const std::string library = folder / "library";
  const MeshOptions mesh_options{.env = {{"FLYWHEEL_TEST_NEEDS", library}}, .needs = {"test.file"}};
  const auto where = [&]() -> Result<std::string> {
    ControllerOptions options = options_in(folder);
    options.launcher = make_local_launcher({.log_folder = folder / "logs"});
    ASSIGN_OR_RETURN(const auto controller, Controller::open(options));
    ASSIGN_OR_RETURN(const Mesh mesh, controller->mesh("m", {{"data", 2}}, mesh_options));
    return mesh.call("test.where").get(1);
  };
  const auto lacking = where();
  ASSERT_FALSE(lacking.ok());
  EXPECT_EQ(lacking.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(lacking.error().message, HasSubstr("does not come up"));
  EXPECT_THAT(lacking.error().message, HasSubstr("the library of this test is not installed"));
  ASSERT_TRUE(write_file(library, "").ok());
  EXPECT_EQ(where().value(), "m 1");
}

TEST(Controller, ManyCallsInFlightComeBackInOrder) {
  const TempFolder folder;
  auto options = options_in(folder);
  options.sync = LogSync::kDisk;
  auto controller = Controller::open(options).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  (void)mesh.call("test.create").wait();
  std::vector<Future> futures;
  for (int i = 0; i < 3000; ++i) futures.push_back(mesh.call("test.echo", std::to_string(i)));
  for (int i = 2999; i >= 0; i -= 500)
    EXPECT_EQ(futures[static_cast<size_t>(i)].get(1).value(), std::to_string(i));
  EXPECT_TRUE(controller->close().ok());
}

}  // namespace
}  // namespace flywheel::runtime
