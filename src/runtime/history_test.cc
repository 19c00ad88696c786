// What a log tells of the lives of a run.
#include "runtime/history.h"

#include <gtest/gtest.h>

#include "base/file.h"

namespace flywheel::runtime {
namespace {

// A log, record by record, as one controller after the other writes it.
class Logged {
 public:
  void controller_starts() { append_record(bytes_, RecordType::kRun, RunRecord{.run = "r"}); }
  void opens_mesh(uint32_t id) {
    append_record(bytes_, RecordType::kMesh, MeshRecord{id, "m", Shape({{"data", 1}})});
  }
  void goes_back_to(uint64_t watermark, uint32_t mesh = 1) {
    append_record(bytes_, RecordType::kEpoch, EpochRecord{mesh, ++epoch_, watermark, "why"});
  }
  void calls(int times, const std::string& operation, bool results = true, uint32_t mesh = 1) {
    for (int i = 0; i < times; ++i) {
      Command command{.sequence = ++sequence_, .mesh = mesh, .operation = operation};
      if (operation == "dice") command.kind = Kind::kNondeterministic;
      append_record(bytes_, RecordType::kCommand, command);
      if (results) result(sequence_, operation == "fail");
    }
  }
  void result(uint64_t sequence, bool failed = false) {
    append_record(bytes_, RecordType::kResult, ResultRecord{sequence, epoch_, {Outcome{.failed = failed}}});
  }
  History read() const {
    const TempFolder folder;
    auto log = CommandLog::open(
                   folder / "log", 0, {}, [](uint64_t) {}, [](const Error&) {})
                   .value();
    log->append(bytes_);
    EXPECT_TRUE(log->sync(Deadline::after_ms(5000)).ok());
    const LogContent content = read_log(folder / "log").value();
    return read_history(content).value();
  }

 private:
  std::string bytes_;
  uint64_t sequence_ = 0, epoch_ = 0;
};

TEST(History, CountsWhatIsDoneAgainOverAllLives) {
  Logged log;
  log.controller_starts();
  log.opens_mesh(1);
  log.goes_back_to(0);  // the start
  log.calls(1, "create");
  log.calls(9, "step");
  log.calls(2, "step", false);  // under way when the controller dies: they were never done
  EXPECT_EQ(log.read().takes, 1u);
  EXPECT_EQ(log.read().meshes.at(1).done_again.total(), CallCounts());
  log.controller_starts();
  log.goes_back_to(0);
  const CallCounts once{{"create", 1}, {"step", 9}};
  EXPECT_EQ(log.read().meshes.at(1).done_again.total(), once);
  log.result(11), log.result(12);  // new ones: it is where the first one was
  log.calls(4, "step");
  log.goes_back_to(12);  // a worker is lost
  const History history = log.read();
  EXPECT_EQ(history.takes, 2u);
  EXPECT_EQ(history.meshes.at(1).done_again.total(), (CallCounts{{"create", 1}, {"step", 9 + 4}}));
  EXPECT_EQ(history.meshes.at(1).done_again.last(), (CallCounts{{"step", 4}}));
}

TEST(History, LivesWithoutANewResultCountOnce) {
  Logged log;
  log.controller_starts();
  log.opens_mesh(1);
  log.goes_back_to(0);
  log.calls(8, "step");
  for (int life = 0; life < 3; ++life) {
    log.controller_starts();
    log.goes_back_to(0);
  }
  log.goes_back_to(6);  // on the way a watermark was taken, and then a worker was lost
  const History history = log.read();
  EXPECT_EQ(history.takes, 4u);
  EXPECT_EQ(history.meshes.at(1).done_again.total(), (CallCounts{{"step", 8}}));
}

TEST(History, FailedAndNondeterministicCallsAreNotDoneAgain) {
  Logged log;
  log.controller_starts();
  log.opens_mesh(1), log.opens_mesh(2);
  log.goes_back_to(0, 1), log.goes_back_to(0, 2);
  log.calls(2, "step");
  log.calls(3, "fail");
  log.calls(4, "dice");
  log.calls(5, "step", true, 2);
  log.controller_starts();
  log.goes_back_to(1, 1), log.goes_back_to(0, 2);
  const History history = log.read();
  EXPECT_EQ(history.meshes.at(1).done_again.total(), (CallCounts{{"step", 1}}));
  EXPECT_EQ(history.meshes.at(2).done_again.total(), (CallCounts{{"step", 5}}));
}

}  // namespace
}  // namespace flywheel::runtime
