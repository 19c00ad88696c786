// The tree of processes, with real ones: what fails stays in its subtree, owners are told, nothing outlives
// its owner.
#include "runtime/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <thread>

#include "base/file.h"
#include "runtime/controller.h"
#include "runtime/operation.h"

namespace flywheel::runtime {
namespace {

using testing::HasSubstr;

bool eventually(const std::function<bool()>& holds, int64_t within_ms = 10'000) {
  for (const Deadline until = Deadline::after_ms(within_ms); !until.expired();) {
    if (holds()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return holds();
}

bool alive(int64_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(stat, text);
  const size_t end = text.rfind(')');
  return end != std::string::npos && text.substr(end + 2, 1) != "Z";  // a zombie only waits to be counted
}

// Numbers that processes wrote into a file, a line each.
std::vector<int64_t> pids_in(const std::string& path) {
  std::ifstream file(path);
  std::vector<int64_t> pids;
  for (int64_t pid; file >> pid;) pids.push_back(pid);
  return pids;
}

struct Reports {
  std::mutex mutex;
  std::vector<Failure> all;
  Supervisor::Report taker() {
    return [this](const Failure& failure) {
      std::scoped_lock lock(mutex);
      all.push_back(failure);
    };
  }
  std::vector<std::string> texts() {
    std::scoped_lock lock(mutex);
    std::vector<std::string> texts;
    for (const auto& failure : all) texts.push_back(failure.to_string());
    return texts;
  }
};

ChildSpec shell(const std::string& script, OnFailure on_failure = OnFailure::kGiveUp) {
  return {.command = {"sh", "-c", script}, .on_failure = on_failure};
}

TEST(Supervisor, TellsHowAChildEndedAndLeavesTheOthersAlone) {
  Reports reports;
  Supervisor tree("root", reports.taker());
  const pid_t calm = tree.start("calm", shell("sleep 1000")).value();
  const pid_t victim = tree.start("victim", shell("sleep 1000")).value();
  ASSERT_TRUE(tree.start("good", shell("exit 0")).ok());
  ASSERT_TRUE(tree.start("bad", shell("exit 3")).ok());
  EXPECT_EQ(tree.wait("good", Deadline::after_ms(5000)).value().exit_code, 0);
  EXPECT_EQ(tree.wait("bad", Deadline::after_ms(5000)).value().exit_code, 3);
  ::kill(victim, SIGKILL);
  EXPECT_EQ(tree.wait("victim", Deadline::after_ms(5000)).value().signal, SIGKILL);
  EXPECT_TRUE(eventually([&] { return reports.texts().size() == 2; }));
  EXPECT_THAT(reports.texts(), testing::UnorderedElementsAre("root/bad: exited with 3; given up",
                                                             "root/victim: killed by signal 9; given up"));
  EXPECT_TRUE(alive(calm));
  EXPECT_EQ(tree.start("calm", shell("sleep 1000")).value(), calm);  // runs already
  EXPECT_EQ(tree.start("calm", shell("sleep 2")).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(tree.wait("calm", Deadline::after_ms(20)).error().code, ErrorCode::kDeadline);
  EXPECT_EQ(tree.stop("nobody").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(tree.stop("calm").value().signal, SIGTERM);  // stopped: no failure
  EXPECT_EQ(reports.texts().size(), 2u);
}

TEST(Supervisor, StartsAgainUntilItIsTooOften) {
  const TempFolder folder;
  Reports reports;
  Supervisor tree("root", reports.taker());
  auto spec = shell("echo $$ >> " + folder / "pids" + "; exit 7", OnFailure::kRestart);
  spec.max_restarts = 2;
  ASSERT_TRUE(tree.start("hopeless", spec).ok());
  EXPECT_TRUE(eventually([&] { return reports.texts().size() == 3; }));
  EXPECT_EQ(pids_in(folder / "pids").size(), 3u);
  EXPECT_EQ(reports.texts()[1], "root/hopeless: exited with 7; started again");
  EXPECT_EQ(reports.texts()[2], "root/hopeless: exited with 7, after 2 restarts in 60 s; given up");
  EXPECT_EQ(tree.children()[0].restarts, 2);
  EXPECT_EQ(tree.children()[0].pid, 0);
}

TEST(Supervisor, AProgramThatIsNotThereFailsWithItsName) {
  const TempFolder folder;
  Reports reports;
  Supervisor tree("root", reports.taker());
  ASSERT_TRUE(tree.start("x", {.command = {"no-such-program"}, .output_file = folder / "out"}).ok());
  EXPECT_EQ(tree.wait("x", Deadline::after_ms(5000)).value().exit_code, 127);
  EXPECT_THAT(read_file(folder / "out").value(), HasSubstr("cannot start no-such-program: No such file"));
}

// A child, a background grandchild, and one that has detached itself (own session, parent gone).
std::string family(const std::string& pids) {
  return "echo $$ >> " + pids + "; sleep 1000 & echo $! >> " + pids + "; (setsid sh -c 'echo $$ >> " + pids +
         "; exec sleep 1000' &) ; wait";
}

TEST(Supervisor, NothingOfAChildIsLeftHoweverItEnds) {
  for (const char* how : {"stop", "kill child", "kill keeper", "destroy"}) {
    const TempFolder folder;
    const std::string file = folder / "pids";
    auto tree = std::make_unique<Supervisor>("root", [](const Failure&) {});
    const pid_t keeper = tree->start("family", shell(family(file))).value();
    ASSERT_TRUE(eventually([&] { return pids_in(file).size() == 3; })) << how;
    const auto pids = pids_in(file);
    for (const int64_t pid : pids) EXPECT_TRUE(alive(pid)) << how;
    if (how == std::string("stop")) (void)tree->stop("family", 0);
    if (how == std::string("kill child")) ::kill(static_cast<pid_t>(pids[0]), SIGKILL);
    if (how == std::string("destroy")) tree.reset();
    // The detached one escapes only if the keeper itself is killed; its own end is all that is asked for
    // then.
    const bool all = how != std::string("kill keeper");
    if (!all) ::kill(keeper, SIGKILL);
    EXPECT_TRUE(eventually([&] { return !alive(pids[0]) && !alive(pids[1]); })) << how;
    EXPECT_TRUE(!all || eventually([&] { return !alive(pids[2]); })) << how;
    for (const int64_t pid : pids) ::kill(static_cast<pid_t>(pid), SIGKILL);
  }
}

// Runs `program` (below) in a process of its own; the test is its ancestor.
Process start_mode(const std::string& mode, const std::string& folder) {
  return Process::start({"/proc/self/exe", mode, folder}).value();
}

TEST(Supervisor, NothingOutlivesAnOwnerThatIsKilled) {
  const TempFolder folder;
  Process owner = start_mode("owner", folder.path());
  ASSERT_TRUE(eventually([&] { return pids_in(folder / "pids").size() == 4; }));
  const auto pids = pids_in(folder / "pids");
  for (const int64_t pid : pids) EXPECT_TRUE(alive(pid));
  owner.signal(SIGKILL);
  (void)owner.wait(Deadline::after_ms(5000));
  for (const int64_t pid : pids) EXPECT_TRUE(eventually([&] { return !alive(pid); })) << pid;
}

ControllerOptions options_in(const std::string& folder, const std::string& run) {
  ControllerOptions options;
  options.folder = folder;
  options.run = run;
  options.sync = LogSync::kProcess;
  options.watermark_interval_ms = 30;
  return options;
}

// A worker that uses a helper process: `args` are its script; "!" in front: it escalates.
REGISTER_OPERATION("tree.helper", Kind::kStateful, [](Call& call) -> Result<std::string> {
  const bool escalates = call.args().starts_with("!");
  const auto spec = shell(std::string(call.args().substr(escalates ? 1 : 0)),
                          escalates ? OnFailure::kEscalate : OnFailure::kGiveUp);
  RETURN_IF_ERROR(call.children().start("helper", spec));
  return call.children().path();
});

std::vector<std::string> failures_of(const Controller& controller) {
  std::vector<std::string> texts;
  for (const auto& failure : controller.failures()) texts.push_back(failure.to_string());
  return texts;
}

TEST(ActorTree, AWorkersChildIsContainedAndReportedToTheController) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder / "run", "r")).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  const std::string script = "echo $$ >> " + folder / "pids" + "; sleep 1000";
  const Mesh one = mesh.slice({{"data", 1}}).value();
  EXPECT_EQ(one.call("tree.helper", script, {.want_value = true}).get(0, Deadline::after_ms(10'000)).value(),
            "r/m/1");
  ASSERT_TRUE(eventually([&] { return pids_in(folder / "pids").size() == 1; }));
  ::kill(static_cast<pid_t>(pids_in(folder / "pids")[0]), SIGKILL);
  ASSERT_TRUE(eventually([&] { return !controller->failures().empty(); }));
  EXPECT_EQ(failures_of(*controller)[0], "r/m/1/helper: killed by signal 9; given up");
  EXPECT_EQ(mesh.status().recoveries, 0);
  // Asked for again, it is started again; and it ends with its worker, SIGKILL or not.
  ASSERT_TRUE(one.call("tree.helper", script).wait(Deadline::after_ms(10'000)).ok());
  ASSERT_TRUE(eventually([&] { return pids_in(folder / "pids").size() == 2; }));
  const int64_t helper = pids_in(folder / "pids")[1];
  EXPECT_TRUE(alive(helper));
  ::kill(static_cast<pid_t>(mesh.status().pids[1]), SIGKILL);
  EXPECT_TRUE(eventually([&] { return !alive(helper); }));
  EXPECT_TRUE(eventually([&] { return mesh.status().running && mesh.status().recoveries == 1; }));
  EXPECT_THAT(failures_of(*controller), testing::Contains("r/m/1: killed by signal 9; started again"));
}

TEST(ActorTree, AChildThatEscalatesTakesItsWorkerAndNothingElse) {
  const TempFolder folder;
  std::vector<std::string> told;
  std::mutex mutex;
  auto options = options_in(folder / "run", "r");
  options.on_failure = [&](const Failure& failure) {
    std::scoped_lock lock(mutex);
    told.push_back(failure.to_string());
  };
  auto controller = Controller::open(options).value();
  const Mesh mesh = controller->mesh("m", {{"data", 2}}).value();
  const Mesh other = controller->mesh("other", {{"data", 2}}).value();
  ASSERT_TRUE(other.call("test.create").wait(Deadline::after_ms(10'000)).ok());
  const auto before = other.status().pids;
  const auto survivor = mesh.status().pids[0];
  // Dies once; the replay that follows starts it again, and it lives.
  const std::string script =
      "!test -e " + folder / "once" + " && exec sleep 1000; touch " + folder / "once" + "; exit 9";
  (void)mesh.slice({{"data", 1}}).value().call("tree.helper", script).wait(Deadline::after_ms(10'000));
  ASSERT_TRUE(eventually([&] { return mesh.status().recoveries == 1 && mesh.status().running; }));
  ASSERT_TRUE(mesh.call("test.nothing").wait(Deadline::after_ms(10'000)).ok());
  EXPECT_EQ(mesh.status().pids[0], survivor);
  EXPECT_EQ(other.status().pids, before);
  EXPECT_EQ(other.status().recoveries, 0);
  ASSERT_TRUE(other.call("test.step").wait(Deadline::after_ms(10'000)).ok());
  std::scoped_lock lock(mutex);
  EXPECT_THAT(told, testing::ElementsAre("r/m/1/helper: exited with 9; its owner fails with it",
                                         "r/m/1: its child helper: exited with 9; started again"));
}

TEST(ActorTree, AMeshThatIsGivenUpTakesNoOtherWithIt) {
  const TempFolder folder;
  auto options = options_in(folder / "run", "r");
  options.watermark_interval_ms = 1'000'000;
  auto controller = Controller::open(options).value();
  const Mesh bad = controller->mesh("bad", {{"data", 2}}).value();
  const Mesh good = controller->mesh("good", {{"data", 2}}).value();
  ASSERT_TRUE(good.call("test.create").wait(Deadline::after_ms(10'000)).ok());
  ASSERT_TRUE(bad.call("test.liar").wait(Deadline::after_ms(10'000)).ok());
  const auto pids = bad.status().pids;
  ::kill(static_cast<pid_t>(pids[1]), SIGKILL);
  EXPECT_FALSE(bad.call("test.nothing").wait(Deadline::after_ms(10'000)).ok());
  EXPECT_TRUE(eventually([&] { return !alive(pids[0]) && !alive(pids[1]); }));
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(good.call("test.step").wait(Deadline::after_ms(10'000)).ok());
  EXPECT_EQ(good.status().recoveries, 0);
  EXPECT_EQ(good.status().epoch, 1u);
  EXPECT_THAT(failures_of(*controller).back(), HasSubstr("r/bad: "));
  EXPECT_THAT(failures_of(*controller).back(), HasSubstr("does not give the same result twice"));
  const auto saved = controller->checkpoint(Deadline::after_ms(10'000));
  EXPECT_FALSE(saved.ok());  // says that one mesh has failed
  EXPECT_GE(good.status().durable_watermark, 51u);
  EXPECT_EQ(controller->close(Deadline::after_ms(10'000)).error().code, ErrorCode::kCorrupt);
}

TEST(ActorTree, ASubControllerIsASubtree) {
  const TempFolder folder;
  auto controller = Controller::open(options_in(folder / "run", "r")).value();
  const Mesh mesh = controller->mesh("m", {{"data", 1}}).value();
  const auto before = mesh.status().pids;
  ASSERT_TRUE(controller->children()
                  .start("eval", {.command = {"/proc/self/exe", "subcontroller", folder.path()}})
                  .ok());
  ASSERT_TRUE(eventually([&] { return pids_in(folder / "workers").size() == 2; }));
  // A worker of its mesh: mended down there, told up here.
  ::kill(static_cast<pid_t>(pids_in(folder / "workers")[1]), SIGKILL);
  ASSERT_TRUE(eventually([&] { return !controller->failures().empty(); }));
  EXPECT_EQ(failures_of(*controller)[0], "r/eval/sub/n/1: killed by signal 9; started again");
  ASSERT_TRUE(eventually([&] { return path_exists(folder / "mended"); }));
  const auto workers = pids_in(folder / "workers");
  for (const int64_t pid : workers) EXPECT_TRUE(alive(pid));
  // Itself: all below it goes, and nothing beside it.
  ::kill(static_cast<pid_t>(pids_in(folder / "self")[0]), SIGKILL);
  ASSERT_TRUE(eventually([&] { return controller->failures().size() == 2; }));
  EXPECT_EQ(failures_of(*controller)[1], "r/eval: killed by signal 9; given up");
  for (const int64_t pid : workers) EXPECT_TRUE(eventually([&] { return !alive(pid); }));
  EXPECT_TRUE(mesh.call("test.nothing").wait(Deadline::after_ms(10'000)).ok());
  EXPECT_EQ(mesh.status().pids, before);
  EXPECT_TRUE(controller->close(Deadline::after_ms(10'000)).ok());
}

}  // namespace

// Programs of the tests above, each in a process of its own, killed by the test.
int owner_main(const std::string& folder) {
  Supervisor tree("owner", [](const Failure&) {});
  if (!tree.start("family", shell(family(folder + "/pids"))).ok()) return 1;
  if (!tree.start("plain", shell("echo $$ >> " + folder + "/pids; exec sleep 1000")).ok()) return 1;
  for (;;) ::pause();
}

int subcontroller_main(const std::string& folder) {
  write_file(folder + "/self", std::to_string(::getpid())).value();
  auto controller = Controller::open(options_in(folder + "/sub", "sub")).value();
  const Mesh mesh = controller->mesh("n", {{"data", 2}}).value();
  const auto tell = [&] {
    std::string text;
    for (const int64_t pid : mesh.status().pids) text += std::to_string(pid) + "\n";
    write_file(folder + "/workers", text).value();
  };
  tell();
  while (mesh.status().recoveries == 0 || !mesh.status().running) ::usleep(1000);
  tell();
  write_file(folder + "/mended", "").value();
  for (;;) ::pause();
}

}  // namespace flywheel::runtime
