// The command log: what was asked of the workers, before it was asked, and what came of it.
//
// Append-only and checksummed. Records are put together into frames (group commit): a thread takes all that
// was appended since the last frame, writes it with one write() and one fdatasync(), and then tells how far
// the log is durable. While the disk syncs, the next group gathers, so the rate does not depend on how long a
// sync takes. Format: docs/formats/command_log.md.
//
// Threads: append() and flush() from any. `on_durable` and `on_error` run on the log's thread, or inside
// flush(lone); they may call append() and flush(), not lone.
// Errors: an append that cannot be written (disk full) is kept and tried again for `full_wait_ms`; then
// on_error is called once, and nothing more is written. Opening: kCorrupt naming the offset for a bad frame
// before the last; a torn last frame is cut off.
//
//   ASSIGN_OR_RETURN(LogContent found, read_log(path));            // what an earlier controller wrote
//   auto log = CommandLog::open(path, found.end, {}, on_durable, on_error);
//   uint64_t at = log->append(bytes_of_records);                   // returns at once
//   ... on_durable(position >= at): now it may be sent
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/file.h"
#include "runtime/log_records.h"

namespace flywheel::runtime {

// What a record must survive before its command is sent.
enum class LogSync {
  kDisk,     // this machine losing power: fdatasync per group
  kProcess,  // any process dying: write() per group; the kernel brings it to disk in its own time
};

struct LogRecord {
  RecordType type;
  uint64_t offset = 0;     // of its frame in the file
  std::string_view bytes;  // into LogContent::file
};

// A log as it lies on disk.
struct LogContent {
  MappedFile file;
  std::vector<LogRecord> records;
  uint64_t end = 0;         // where the next frame goes
  uint64_t torn_bytes = 0;  // of an unfinished frame after that
};

// A missing file is an empty log.
Result<LogContent> read_log(const std::string& path);

class CommandLog {
 public:
  struct Options {
    LogSync sync = LogSync::kDisk;
    int64_t full_wait_ms = 30'000;
    size_t max_frame_bytes = size_t{8} << 20;
  };
  using OnDurable = std::function<void(uint64_t position)>;
  using OnError = std::function<void(const Error&)>;

  // Cuts the file at `end` (from read_log) and writes from there.
  static Result<std::unique_ptr<CommandLog>> open(const std::string& path, uint64_t end,
                                                  const Options& options, OnDurable on_durable,
                                                  OnError on_error);
  ~CommandLog();
  CommandLog(const CommandLog&) = delete;
  CommandLog& operator=(const CommandLog&) = delete;

  // Whole records (append_record). The result is the position up to which the log must be durable for them;
  // positions count appended bytes and only grow.
  uint64_t append(std::string_view records);
  // After append(): begins a group. `lone`: nothing else is on its way, so with kProcess the group is written
  // here and now, which saves the hop to the log's thread.
  void flush(bool lone = false);
  uint64_t durable() const;
  // Waits until everything appended before is durable.
  Result<void> sync(Deadline deadline);

 private:
  CommandLog() = default;
  void loop();
  enum class Write { kNothing, kDone, kRefused };
  Write write_group();  // under io_mutex_
  void say_full(const Error& error);
  void say_room();
  void fail(const Error& error);
  Options options_;
  OnDurable on_durable_;
  OnError on_error_;
  AppendFile file_;
  std::mutex io_mutex_;                  // held while a frame is written; taken before mutex_
  std::optional<Stopwatch> full_since_;  // the disk took nothing; under io_mutex_, as the next
  std::optional<Stopwatch> warned_;      // since that was said
  mutable std::mutex mutex_;
  std::condition_variable wake_, progress_;
  std::string waiting_, writing_;
  uint64_t appended_ = 0, durable_ = 0;
  bool stop_ = false;
  std::optional<Error> failed_;
  std::thread thread_;
};

}  // namespace flywheel::runtime
