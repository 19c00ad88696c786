// Which rules refused documents most, and what in the config would let those pass: for the message of a
// preparation that no document is left of.
//
// Threads: any. Errors: a line that is no record of a dropped document is left out.
//
//   gopher_quality.max_words dropped 1 of 1 (202651 where 100000 is the most), `--set
//   quality.gopher_quality.max_words=202651` lets it past
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace flywheel::data {

struct Refusals {
  std::string rule;  // "gopher_quality.max_words"
  int64_t documents = 0;
  double threshold = 0;
  double least = 0, most = 0;  // of what was measured
};

// By rule from the lines of dropped.jsonl, those that dropped most first, then by name.
std::vector<Refusals> refusals(std::string_view dropped_lines);

// The override of DataConfig that lets every document past this rule that it refused:
// "quality.gopher_quality.max_words=202651". A share is rounded outwards to thousandths. Empty for rules that
// no key of quality: sets (a page without text, duplicates).
std::string override_past(const Refusals& rule);

// The first `most_rules` of them as a sentence each, with the override; `documents`: of how many.
std::string describe_refusals(const std::vector<Refusals>& rules, int64_t documents, size_t most_rules = 3);

}  // namespace flywheel::data
