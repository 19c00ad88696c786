// What an earlier controller's log says: the calls with what came of them, the meshes with their epochs and
// watermarks. Reading starts with read_log (command_log.h); this gives it meaning.
//
// Errors: kCorrupt for a record that is not what its type says, with its offset; kInvalid for a log of a
// newer version.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/command_log.h"
#include "runtime/log_records.h"

namespace flywheel::runtime {

struct LoggedCall {
  Command command;
  std::optional<ResultRecord> result;
};

using CallCounts = std::map<std::string, int64_t>;  // by operation

// Calls that a mesh computed once more because its state went back, over all controllers of the run.
class DoneAgain {
 public:
  // State went back to before these calls, which have results. Where no new result came since it last did,
  // that time was cut short, and these are the same calls or some of them: they count once.
  void go_back(const CallCounts& calls);
  void note_new_result() { new_result_ = true; }
  CallCounts total() const;
  const CallCounts& last() const { return last_; }  // the last time

 private:
  CallCounts before_, last_;
  bool new_result_ = false;
};

struct LoggedMesh {
  MeshRecord record;
  uint64_t epoch = 0;
  DoneAgain done_again;           // of calls that failed, or are nondeterministic, none is
  std::vector<uint64_t> durable;  // watermarks on disk, oldest first
  std::optional<MeshCloseRecord> closed;
};

struct History {
  std::optional<RunRecord> run;
  std::vector<LoggedCall> calls;  // calls[i] has sequence first + i
  uint64_t first = 1;
  std::map<uint32_t, LoggedMesh> meshes;
  uint64_t takes = 0;  // how many controllers have had the run
  bool closed = false;

  uint64_t last() const { return first + calls.size() - 1; }
  LoggedCall* find(uint64_t sequence);
  // Calls of a mesh after a watermark that are computed again when its state goes back there.
  CallCounts after(uint32_t mesh, uint64_t watermark) const;
};

Result<History> read_history(const LogContent& content);

}  // namespace flywheel::runtime
