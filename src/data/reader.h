// Raw files into documents: decoding, main-content extraction, lines and rows. What cannot be read is
// quarantined with its place and the reading goes on.
//
// Work is cut into units by size, never by threads: a file, 8 MB of a JSONL file, a row group of a Parquet
// file. Units in order give the documents in order.
//
// Threads: read_unit() any. Errors: none beyond the quarantine.
//
//   std::vector<ReadUnit> units = plan_units(inputs, config);
//   UnitResult result = read_unit(inputs, units[0], config, extract);
#pragma once

#include <cstdint>
#include <vector>

#include "data/document.h"
#include "data/extract.h"
#include "data/input.h"

namespace flywheel::data {

// Why a unit is quarantined for which memory did not suffice.
inline constexpr const char* kTooLittleMemory =
    "too little memory to read it; give more, or fewer threads, and set input.max_file_bytes to have it read "
    "again";

struct ReadUnit {
  size_t file = 0;
  uint64_t begin = 0, end = 0;  // bytes of a JSONL file: the lines that start in them; else the whole file
  int64_t first_line = 1;
  int row_group = -1;   // of a Parquet file
  std::string problem;  // why the file cannot be read at all
};

struct UnitResult {
  std::vector<Document> documents;
  std::vector<Dropped> dropped;  // pages without text
  std::vector<Quarantined> quarantined;
  int64_t bytes_in = 0;      // decompressed
  int64_t decoded = 0;       // texts that were not UTF-8
  int64_t replacements = 0;  // characters that could not be decoded
};

std::vector<ReadUnit> plan_units(const InputList& inputs, const InputConfig& config);
// std::bad_alloc where memory does not suffice for a unit.
UnitResult read_unit(const InputList& inputs, const ReadUnit& unit, const InputConfig& config,
                     const ExtractConfig& extract);

}  // namespace flywheel::data
