// A command log as a table that a person can follow (`flywheel log show`).
//
//       #  epoch  operation   arguments  result
//          -- run tiny-7, seed 1: begins at 2026-11-21 06:30:44 UTC
//          -- train: epoch 1: started; from watermark 0
//      17      1  train.step  cursor 15  ca83b3a6 gradient_norm 0.65, loss 5.998, lr 0.002, tokens 4096
//          -- train: epoch 2: rank 1: killed by signal 9; from watermark 11
//     245 commands, 3 watermarks, 1 recovery; the program ended
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/command_log.h"
#include "runtime/log_records.h"

namespace flywheel::runtime {

struct LogLine {
  RecordType kind = RecordType::kRun;
  uint64_t offset = 0;    // of the record's frame in the file
  uint64_t sequence = 0;  // of the command; 0 for other records
  uint64_t epoch = 0;
  std::string mesh, what, slice, arguments, result;  // long ones are cut: for people
  // A command's own, whole: for machines.
  std::string args;
  int64_t cursor = 0;
  std::vector<uint64_t> uses;
  uint64_t generator_key = 0;
  int64_t deadline_ms = 0;
  std::vector<Outcome> outcomes;  // of its ranks; none: no result
};

// One line per record; a command's result stands in its own line. kCorrupt as read_history.
Result<std::vector<LogLine>> log_lines(const LogContent& content);
// What of a command has a column: its cursor and the objects that it uses stand among its arguments, or each,
// with the key of its random numbers and its deadline, in a column of its own.
enum class LogColumns { kUsual, kAll };

// With a head, columns aligned, and a last line that sums up. A result is its digest and what is known of it;
// ranks that differ are told apart by |. `last`: only so many lines of it; the sum is over all of them.
std::string log_table(std::span<const LogLine> lines, size_t last = SIZE_MAX,
                      LogColumns columns = LogColumns::kUsual);

}  // namespace flywheel::runtime
