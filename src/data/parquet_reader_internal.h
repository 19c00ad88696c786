// Rows of a Parquet file. Arrow's headers stay in the .cc.
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

}  // namespace flywheel::data
