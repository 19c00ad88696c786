// A command log as a table that a person can follow (`flywheel log show`).
//
//      #  epoch  what
//      -      1  mesh train (data=2): started, from watermark 0
//     17      1  train.step on 0-1, cursor 16, stateful -> 8f3a.. 8f3a.. (12 bytes each)
#pragma once

#include <string>
#include <vector>

#include "runtime/command_log.h"

namespace flywheel::runtime {

struct LogLine {
  uint64_t offset = 0;    // of the record's frame in the file
  uint64_t sequence = 0;  // of the command; 0 for other records
  uint64_t epoch = 0;
  std::string mesh, what, slice, arguments, result;
};

// One line per record; a command's result stands in its own line. kCorrupt as read_history.
Result<std::vector<LogLine>> log_lines(const LogContent& content);
// With a head, columns aligned.
std::string log_table(const std::vector<LogLine>& lines);

}  // namespace flywheel::runtime
