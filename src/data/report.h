// What each stage of `flywheel data prepare` took in, kept and dropped, and why: as JSON for programs, as a
// table for people.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace flywheel::data {

struct StageReport {
  struct Count {
    int64_t documents = 0, bytes = 0;
  };
  std::string name;
  int64_t documents_in = 0, documents_out = 0;
  int64_t bytes_in = 0, bytes_out = 0;
  int64_t quarantined = 0;  // malformed inputs, lines or rows
  double seconds = 0;
  bool reused = false;                   // its result was there already
  std::map<std::string, Count> dropped;  // by rule
  std::map<std::string, int64_t>
      counts;  // what else it counted: "lines removed: c4.no_policy_lines", "tokens", ...
  void drop(const std::string& rule, int64_t bytes) {
    Count& count = dropped[rule];
    ++count.documents;
    count.bytes += bytes;
  }
};

// One rule of the config as it was in force.
struct RuleSetting {
  std::string name;  // "c4.terminal_punctuation"
  bool on = true;
  std::string value;  // its threshold; "" for a switch
};

struct PrepareReport {
  int64_t files = 0, bytes = 0;            // raw inputs
  std::map<std::string, int64_t> skipped;  // files that were not read, by reason
  std::vector<StageReport> stages;
  std::vector<RuleSetting> rules;  // every rule, in the order of the config
  double seconds = 0;
  std::map<std::string, std::string> artifacts;  // "dataset" -> "docs:1"
};

OrderedJson to_json(const StageReport& stage);
OrderedJson to_json(const PrepareReport& report);
Result<StageReport> stage_from_json(const OrderedJson& json);
Result<PrepareReport> report_from_json(const OrderedJson& json);

// The tables, in Markdown that also reads well in a terminal.
std::string to_text(const PrepareReport& report);

}  // namespace flywheel::data
