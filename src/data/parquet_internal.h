// Parquet files in and out. Arrow's headers stay in the .cc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace flywheel::data {

struct ParquetRow {
  int64_t number = 0;  // in the file, from 0
  bool has_text = false;
  std::string text, url, title, language;
};

// kInvalid for bytes that are not a Parquet file.
Result<int> parquet_row_groups(std::string_view bytes);

// kInvalid without a column `text_key` of texts.
Result<std::vector<ParquetRow>> read_parquet(std::string_view bytes, int row_group,
                                             const std::string& text_key);

// A JSONL file of documents as Parquet (zstd), with a column for each of their keys.
Result<void> write_parquet(const std::string& jsonl_path, const std::string& parquet_path);

}  // namespace flywheel::data
