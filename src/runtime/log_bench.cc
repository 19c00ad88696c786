// Records per second through the command log, durable on disk, beside SQLite with the same records in as many
// transactions, and beside what the disk itself takes: the same bytes in frames of the same size, write() and
// fdatasync() and nothing else. Prints one JSON line.
//   runtime_log_bench FOLDER
#include <fcntl.h>
#include <sqlite3.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "runtime/command_log.h"

namespace flywheel::runtime {
namespace {

Command example(uint64_t sequence) {
  Command command;
  command.sequence = sequence;
  command.operation = "train.step";
  command.args.assign(64, 'a');
  command.generator_key = sequence * 0x9E3779B97F4A7C15u;
  command.cursor = static_cast<int64_t>(sequence);
  command.deadline_ms = 600'000;
  return command;
}

constexpr uint64_t kRecords = 1'000'000;

struct Written {
  double seconds = 0;
  uint64_t groups = 0, bytes = 0;
};

Written through_the_log(const std::string& path) {
  std::atomic<uint64_t> groups{0};
  Written written;
  auto log = CommandLog::open(
                 path, 0, {.sync = LogSync::kDisk}, [&](uint64_t) { ++groups; }, [](const Error&) {})
                 .value();
  const Stopwatch clock;
  std::string record;
  uint64_t position = 0;
  for (uint64_t i = 1; i <= kRecords; ++i) {
    record.clear();
    append_record(record, RecordType::kCommand, example(i));
    position = log->append(record);
    log->flush();
    // As the controller does: at most so many commands that nobody has confirmed.
    while (i % 1024 == 0 && position - log->durable() > (size_t{4} << 20)) ::usleep(50);
  }
  log->sync(Deadline::after_ms(60'000)).value();
  written.seconds = clock.seconds();
  written.groups = groups;
  written.bytes = file_size(path).value();
  return written;
}

// The peer at its best: WAL, one prepared statement, records made once, no checkpoint on the way. FULL syncs
// the WAL at each commit, which is what the log promises of a group.
double through_sqlite(const std::string& path, uint64_t groups, uint64_t record_bytes) {
  sqlite3* db = nullptr;
  const auto check = [&](int rc) {
    CHECK(rc == SQLITE_OK || rc == SQLITE_DONE, "SQLite: {}", sqlite3_errmsg(db));
  };
  const auto run = [&](const char* sql) { check(sqlite3_exec(db, sql, nullptr, nullptr, nullptr)); };
  check(sqlite3_open(path.c_str(), &db));
  run("pragma journal_mode = wal; pragma synchronous = full; pragma wal_autocheckpoint = 0; "
      "pragma cache_size = -262144; create table log (sequence integer primary key, record blob)");
  sqlite3_stmt* insert = nullptr;
  check(sqlite3_prepare_v3(db, "insert into log values (?1, ?2)", -1, SQLITE_PREPARE_PERSISTENT, &insert,
                           nullptr));
  const std::string record(record_bytes, 'x');
  const Stopwatch clock;
  uint64_t next = 1;
  for (uint64_t group = 1; group <= groups; ++group) {
    run("begin immediate");
    for (; next <= kRecords * group / groups; ++next) {
      check(sqlite3_bind_int64(insert, 1, static_cast<int64_t>(next)));
      check(sqlite3_bind_blob(insert, 2, record.data(), static_cast<int>(record.size()), SQLITE_STATIC));
      check(sqlite3_step(insert));
      check(sqlite3_reset(insert));
    }
    run("commit");
  }
  const double seconds = clock.seconds();
  check(sqlite3_finalize(insert));
  check(sqlite3_close(db));
  for (const char* end : {"", "-wal", "-shm"}) remove_all(path + end).value();
  return seconds;
}

double to_the_disk(const std::string& path, uint64_t groups, uint64_t bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_TRUNC | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  const std::string frame(bytes / groups, 'x');
  const Stopwatch clock;
  for (uint64_t i = 0; i < groups; ++i) {
    CHECK(
        ::write(fd, frame.data(), frame.size()) == static_cast<ssize_t>(frame.size()) && ::fdatasync(fd) == 0,
        "cannot write {}", path);
  }
  const double seconds = clock.seconds();
  ::close(fd);
  return seconds;
}

}  // namespace
}  // namespace flywheel::runtime

int main(int argc, char** argv) {
  using namespace flywheel;
  using namespace flywheel::runtime;
  init_logging("warn");
  const std::string folder = argc > 1 ? argv[1] : ".";
  const std::string path = folder + "/log_bench.log";
  const Written log = through_the_log(path);
  const double disk = to_the_disk(path, log.groups, log.bytes);
  remove_all(path).value();
  const double sqlite = through_sqlite(folder + "/log_bench.db", log.groups, log.bytes / kRecords);
  const auto rate = [](double seconds) { return static_cast<double>(kRecords) / seconds; };
  const Json out = {{"records_per_s", rate(log.seconds)},
                    {"sqlite_records_per_s", rate(sqlite)},
                    {"disk_records_per_s", rate(disk)},
                    {"groups", log.groups},
                    {"record_bytes", static_cast<double>(log.bytes) / kRecords}};
  std::printf("%s\n", out.dump().c_str());
  return 0;
}
