#include "runtime/command_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>
#include <regex>
#include <sstream>

#include "base/hash.h"
#include "base/philox.h"
#include "runtime/log_table.h"

namespace flywheel::runtime {
namespace {

using testing::HasSubstr;

std::unique_ptr<CommandLog> open_log(const std::string& path, CommandLog::Options options = {}) {
  auto content = read_log(path).value();
  return CommandLog::open(
             path, content.end, options, [](uint64_t) {}, [](const Error&) {})
      .value();
}

// Without syncs, which some thousand times would take minutes.
void put(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

std::string command_record(uint64_t sequence, const std::string& operation = "a.b",
                           const std::string& args = "") {
  Command command;
  command.sequence = sequence;
  command.operation = operation;
  command.args = args;
  std::string bytes;
  append_record(bytes, RecordType::kCommand, command);
  return bytes;
}

// --- text cases: testdata/log/*.txt --------------------------------------------------------------------

// Builds a log from the lines of a case; returns what `expect` is compared with.
class LogCase {
 public:
  explicit LogCase(const std::string& path) : path_(path) {}

  void line(const std::string& text) {
    std::istringstream words(text);
    std::string verb;
    words >> verb;
    std::string bytes;
    if (verb == "run") {
      RunRecord run;
      std::string skip;
      words >> run.run >> skip >> run.seed;
      append_record(bytes, RecordType::kRun, run);
    } else if (verb == "mesh") {
      MeshRecord mesh;
      std::string axis;
      words >> mesh.mesh >> mesh.name >> axis;
      const size_t equals = axis.find('=');
      mesh.shape = Shape({{axis.substr(0, equals), std::stoi(axis.substr(equals + 1))}});
      append_record(bytes, RecordType::kMesh, mesh);
    } else if (verb == "epoch") {
      EpochRecord epoch;
      std::string from, mark;
      words >> epoch_ >> from >> mark;
      epoch.mesh = 1, epoch.epoch = epoch_, epoch.watermark = std::stoull(mark);
      epoch.reason = text.substr(text.find(": ") + 2);
      append_record(bytes, RecordType::kEpoch, epoch);
    } else if (verb == "command") {
      append_record(bytes, RecordType::kCommand, command(words));
    } else if (verb == "result") {
      append_record(bytes, RecordType::kResult, result(text, words));
    } else if (verb == "watermark") {
      WatermarkRecord watermark;
      std::string how;
      words >> watermark.watermark >> how >> watermark.bytes;
      watermark.mesh = 1, watermark.durable = how == "durable";
      append_record(bytes, RecordType::kWatermark, watermark);
    } else if (verb == "close") {
      append_record(bytes, RecordType::kClose, CloseRecord{});
    } else if (verb == "last") {
      words >> last_;
    } else if (verb == "wide") {
      columns_ = LogColumns::kAll;
    } else if (verb == "sync") {
      write();
    } else if (verb == "cut") {
      write();
      size_t n = 0;
      words >> n;
      std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - n);
    } else if (verb == "flip") {
      write();
      std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
      std::streamoff at = 0;
      words >> at;
      file.seekg(at);
      const char byte = static_cast<char>(file.get() ^ 0x20);
      file.seekp(at);
      file.put(byte);
    } else {
      FAIL() << "no such line: " << text;
    }
    waiting_ += bytes;
  }

  std::string outcome() {
    write();
    const auto content = read_log(path_);
    if (!content.ok()) return content.error().to_string() + "\n";
    const auto lines = log_lines(*content);
    if (!lines.ok()) return lines.error().to_string() + "\n";
    std::string text = log_table(*lines, last_, columns_);
    if (content->torn_bytes > 0) text += fmt::format("torn {} bytes\n", content->torn_bytes);
    return text;
  }

 private:
  Command command(std::istringstream& words) const {
    Command command;
    std::string ranks, word;
    words >> command.sequence >> command.operation >> ranks;
    command.mesh = 1, command.epoch = epoch_;
    if (ranks != "all") command.ranks.push_back(std::stoi(ranks));
    while (words >> word) {
      if (word == "cursor") words >> command.cursor;
      if (word == "key") words >> command.generator_key;
      if (word == "deadline") words >> command.deadline_ms;
      if (word == "uses") {
        for (uint64_t used = 0; words >> used;) command.uses.push_back(used);
      }
      if (word.starts_with('"')) {
        std::string rest;
        std::getline(words, rest);
        command.args = (word + rest).substr(1, (word + rest).size() - 2);
      }
    }
    return command;
  }
  static ResultRecord result(const std::string& text, std::istringstream& words) {
    ResultRecord result;
    std::string word;
    words >> result.sequence;
    while (words >> word) {
      Outcome& outcome = result.outcomes.emplace_back();
      if (word.starts_with('!')) {
        outcome.failed = true, outcome.code = ErrorCode::kNotFound;
        outcome.value = text.substr(text.find(": ") + 2);
        break;
      }
      if (!word.starts_with('=')) continue;
      if (word.starts_with("=\"")) {
        std::string rest;
        std::getline(words, rest);
        word = "=" + (word + rest).substr(2, (word + rest).size() - 3);
      }
      outcome.value = word.substr(1), outcome.has_value = true;
      outcome.size_bytes = outcome.value.size(), outcome.digest = xxh64(outcome.value);
    }
    return result;
  }
  void write() {
    if (waiting_.empty()) return;
    auto log = open_log(path_);
    log->append(waiting_);
    ASSERT_TRUE(log->sync(Deadline::after_ms(5000)).ok());
    waiting_.clear();
  }
  std::string path_, waiting_;
  uint64_t epoch_ = 0;
  size_t last_ = SIZE_MAX;
  LogColumns columns_ = LogColumns::kUsual;
};

TEST(CommandLog, TextCases) {
  int cases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(FLYWHEEL_ROOM_DIR "/testdata/log")) {
    SCOPED_TRACE(entry.path().filename().string());
    ++cases;
    const TempFolder folder;
    LogCase log(folder / "log");
    std::ifstream file(entry.path());
    std::string line, expected, actual;
    while (std::getline(file, line) && line != "expect") {
      if (!line.empty() && line[0] != '#') log.line(line);
    }
    while (std::getline(file, line)) expected += line + "\n";
    std::istringstream out(log.outcome());
    while (std::getline(out, line)) {
      if (const size_t at = line.find(folder / "log"); at != std::string::npos)
        line.replace(at, (folder / "log").size(), "LOG");
      // Digests are xxHash's business.
      line = std::regex_replace(line, std::regex("  [0-9a-f]{8} "), "  DIGEST ");
      actual += line + "\n";
    }
    EXPECT_EQ(actual, expected);
  }
  EXPECT_GE(cases, 3);
}

// --- properties ------------------------------------------------------------------------------------------

TEST(CommandLog, CutAnywhereItKeepsWholeGroupsAndGoesOn) {
  const TempFolder folder;
  const std::string path = folder / "log";
  std::vector<uint64_t> ends{0};
  {
    auto log = open_log(path);
    for (uint64_t i = 1; i <= 8; ++i) {
      log->append(command_record(i, "op", std::string(i * 7, 'x')));
      ASSERT_TRUE(log->sync(Deadline::after_ms(5000)).ok());
      ends.push_back(file_size(path).value());
    }
  }
  const std::string whole = read_file(path).value();
  for (size_t length = 0; length <= whole.size(); ++length) {
    put(path, whole.substr(0, length));
    const auto content = read_log(path);
    ASSERT_TRUE(content.ok()) << length << content.error().message;
    const auto groups =
        static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), length) - ends.begin() - 1);
    EXPECT_EQ(content->records.size(), groups) << length;
    EXPECT_EQ(content->end, ends[groups]);
  }
  put(path, whole.substr(0, whole.size() - 1));
  {
    auto log = open_log(path);
    log->append(command_record(8, "again"));
    ASSERT_TRUE(log->sync(Deadline::after_ms(5000)).ok());
  }
  EXPECT_EQ(read_log(path)->records.size(), 8u);
}

TEST(CommandLog, EveryFlippedBitIsFound) {
  const TempFolder folder;
  const std::string path = folder / "log";
  {
    auto log = open_log(path);
    for (uint64_t i = 1; i <= 5; ++i) {
      log->append(command_record(i, "op", "some arguments"));
      ASSERT_TRUE(log->sync(Deadline::after_ms(5000)).ok());
    }
  }
  const std::string whole = read_file(path).value();
  const size_t last = read_log(path)->records.back().offset;
  Philox rng(std::random_device{}());
  for (int round = 0; round < 400; ++round) {
    std::string damaged = whole;
    const size_t at = rng.below(whole.size());
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << rng.below(8)));
    put(path, damaged);
    const auto content = read_log(path);
    if (at >= last) {  // damage in the last group looks like a write that was cut short
      ASSERT_TRUE(content.ok());
      EXPECT_EQ(content->records.size(), 4u);
    } else {
      ASSERT_FALSE(content.ok()) << at;
      EXPECT_EQ(content.error().code, ErrorCode::kCorrupt);
      const bool in_magic = at < 4;  // then it is not even taken for a log
      EXPECT_THAT(content.error().message, HasSubstr(in_magic ? "not a command log" : "bad record at byte"));
    }
  }
}

TEST(CommandLog, GarbageIsAnErrorOrEmptyAndNeverACrash) {
  const TempFolder folder;
  const std::string path = folder / "log";
  Philox rng(std::random_device{}());
  for (int round = 0; round < 200; ++round) {
    std::string bytes(rng.below(2000), '\0');
    for (auto& byte : bytes) byte = static_cast<char>(rng.next_u32());
    put(path, bytes);
    const auto content = read_log(path);
    if (content.ok()) {
      EXPECT_EQ(content->torn_bytes, bytes.size());
    }
  }
}

// Damage that the checksum does not show (a bug of another writer): records or an error, whatever they say.
TEST(CommandLog, SoundFramesOfAnyContentAreReadOrRefused) {
  const TempFolder folder;
  const std::string path = folder / "log";
  std::string records;
  append_record(records, RecordType::kRun, RunRecord{.run = "r", .seed = 7});
  append_record(records, RecordType::kMesh, MeshRecord{.name = "m", .shape = Shape({{"data", 2}})});
  append_record(records, RecordType::kEpoch, EpochRecord{.epoch = 1, .reason = "start"});
  records += command_record(1, "op", "arguments");
  append_record(records, RecordType::kResult, ResultRecord{.sequence = 1, .outcomes = {{}, {}}});
  append_record(records, RecordType::kValue, ValueRecord{.sequence = 1, .value = "v"});
  append_record(records, RecordType::kWatermark, WatermarkRecord{.watermark = 1, .durable = true});
  append_record(records, RecordType::kMeshClose,
                MeshCloseRecord{.last_sequence = 1, .missing = {1}, .reason = "no spare"});
  append_record(records, RecordType::kClose, CloseRecord{.last_sequence = 1});
  Philox rng(16);
  int read = 0;
  for (int round = 0; round < 1000; ++round) {
    std::string frame = std::string("FWL1", 4) + std::string(20, '\0') + records;
    for (uint64_t n = rng.below(4); n > 0; --n) {
      frame[24 + rng.below(frame.size() - 24)] = static_cast<char>(rng.next_u32());
    }
    if (rng.below(3) == 0) frame.resize(24 + rng.below(frame.size() - 24));
    const auto length = static_cast<uint32_t>(frame.size() - 24);
    std::memcpy(frame.data() + 16, &length, 4);
    const uint32_t crc = crc32c(std::string_view(frame).substr(8));
    std::memcpy(frame.data() + 4, &crc, 4);
    put(path, frame);
    const auto content = read_log(path);
    if (!content.ok()) {
      EXPECT_EQ(content.error().code, ErrorCode::kCorrupt);
      continue;
    }
    const auto lines = log_lines(*content);
    if (!lines.ok()) continue;
    ++read;
    EXPECT_FALSE(log_table(*lines).empty());
  }
  EXPECT_GT(read, 100);
}

// RLIMIT_FSIZE makes write() fail with EFBIG as a full disk fails with ENOSPC.
TEST(CommandLog, AFullDiskIsWaitedForAndThenAnError) {
  const TempFolder folder;
  const std::string path = folder / "log";
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto limit = [&](rlim_t bytes) {
    const rlimit now{bytes, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &now), 0);
  };
  bool failed = false;
  testing::internal::CaptureStderr();
  {
    auto log = CommandLog::open(
                   path, 0, {.full_wait_ms = 600}, [](uint64_t) {},
                   [&](const Error& error) {
                     failed = true;
                     EXPECT_EQ(error.code, ErrorCode::kFull);
                   })
                   .value();
    log->append(command_record(1));
    ASSERT_TRUE(log->sync(Deadline::after_ms(5000)).ok());
    limit(100);
    log->append(command_record(2, "op", std::string(200, 'x')));
    log->flush();
    EXPECT_EQ(log->sync(Deadline::after_ms(50)).error().code, ErrorCode::kDeadline);
    limit(before.rlim_cur);  // somebody made room
    EXPECT_TRUE(log->sync(Deadline::after_ms(2000)).ok());
    EXPECT_FALSE(failed);
    limit(300);
    log->append(command_record(3, "op", std::string(200, 'x')));
    EXPECT_EQ(log->sync(Deadline::after_ms(5000)).error().code, ErrorCode::kFull);
  }
  limit(before.rlim_cur);
  const std::string said = testing::internal::GetCapturedStderr();
  const auto times = [&](const std::string& what) {
    int n = 0;
    for (size_t at = said.find(what); at != std::string::npos; at = said.find(what, at + 1)) ++n;
    return n;
  };
  EXPECT_EQ(times("waiting for room"), 2) << said;  // each time it became full, and not at every attempt
  EXPECT_EQ(times("there is room again"), 1) << said;
  EXPECT_TRUE(failed);
  const auto content = read_log(path);
  ASSERT_TRUE(content.ok());
  EXPECT_EQ(content->records.size(), 2u);
  EXPECT_EQ(content->torn_bytes, 0u);
}

}  // namespace
}  // namespace flywheel::runtime
