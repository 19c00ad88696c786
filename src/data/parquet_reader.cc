#include <arrow/api.h>
#include <arrow/compute/api.h>
#include <arrow/io/memory.h>
#include <parquet/arrow/reader.h>
#include <parquet/exception.h>

#include "data/parquet_internal.h"

namespace flywheel::data {
namespace {

Error invalid(const std::string& what) {
  return make_error(ErrorCode::kInvalid, "not a readable Parquet file: {}", what);
}

using Reader = std::unique_ptr<parquet::arrow::FileReader>;

// Arrow reports most problems as Status and some as exceptions; neither leaves this file.
Result<Reader> open(std::string_view bytes) {
  try {
    auto buffer = std::make_shared<arrow::Buffer>(reinterpret_cast<const uint8_t*>(bytes.data()),
                                                  static_cast<int64_t>(bytes.size()));
    auto reader = parquet::arrow::OpenFile(std::make_shared<arrow::io::BufferReader>(buffer),
                                           arrow::default_memory_pool());
    if (!reader.ok()) return invalid(reader.status().message());
    Reader out = std::move(reader).ValueUnsafe();
    out->set_use_threads(false);
    return out;
  } catch (const std::exception& error) {
    return invalid(error.what());
  }
}

// Calls use(array) with the array's own type if it holds texts or bytes; false for another type.
template <typename Use>
bool with_texts(const arrow::Array& array, Use&& use) {
  switch (array.type_id()) {
    case arrow::Type::STRING:
      use(static_cast<const arrow::StringArray&>(array));
      return true;
    case arrow::Type::LARGE_STRING:
      use(static_cast<const arrow::LargeStringArray&>(array));
      return true;
    case arrow::Type::STRING_VIEW:
      use(static_cast<const arrow::StringViewArray&>(array));
      return true;
    case arrow::Type::BINARY:
      use(static_cast<const arrow::BinaryArray&>(array));
      return true;
    case arrow::Type::LARGE_BINARY:
      use(static_cast<const arrow::LargeBinaryArray&>(array));
      return true;
    case arrow::Type::BINARY_VIEW:
      use(static_cast<const arrow::BinaryViewArray&>(array));
      return true;
    default:
      return false;
  }
}

// Calls use(row, text) for each value of a column of texts that is not null, also where rows are numbers of a
// dictionary (what pandas calls categories); false for another type.
template <typename Use>
bool for_each_text(const arrow::ChunkedArray& column, Use&& use) {
  size_t row = 0;
  const auto all = [&](const auto& texts) {
    for (int64_t i = 0; i < texts.length(); ++i, ++row) {
      if (texts.IsValid(i)) use(row, texts.GetView(i));
    }
  };
  for (const auto& chunk : column.chunks()) {
    bool texts = false;
    if (chunk->type_id() == arrow::Type::DICTIONARY) {
      const auto& numbers = static_cast<const arrow::DictionaryArray&>(*chunk);
      texts = with_texts(*numbers.dictionary(), [&](const auto& words) {
        for (int64_t i = 0; i < numbers.length(); ++i, ++row) {
          if (!numbers.IsValid(i)) continue;
          const int64_t word = numbers.GetValueIndex(i);
          if (word >= 0 && word < words.length() && words.IsValid(word)) use(row, words.GetView(word));
        }
      });
    } else {
      texts = with_texts(*chunk, all);
    }
    if (!texts) return false;
  }
  return true;
}

Result<std::vector<ParquetRow>> read_rows(parquet::arrow::FileReader& reader, int row_group,
                                          const std::string& text_key) {
  std::shared_ptr<arrow::Schema> schema;
  if (const auto status = reader.GetSchema(&schema); !status.ok()) return invalid(status.message());
  std::vector<int> columns;
  const char* const optional_keys[] = {"url", "title", "language"};
  if (schema->GetFieldIndex(text_key) < 0) {
    return make_error(ErrorCode::kInvalid, "no column \"{}\" (input.text_key)", text_key);
  }
  // Leaf numbers differ from field numbers where fields are nested.
  const auto* descriptor = reader.parquet_reader()->metadata()->schema();
  for (int i = 0; i < descriptor->num_columns(); ++i) {
    const std::string name = descriptor->Column(i)->path()->ToDotString();
    if (name == text_key ||
        std::find(std::begin(optional_keys), std::end(optional_keys), name) != std::end(optional_keys)) {
      columns.push_back(i);
    }
  }
  auto read = reader.ReadRowGroup(row_group, columns);
  if (!read.ok()) return invalid(read.status().message());
  const std::shared_ptr<arrow::Table> table = std::move(read).ValueUnsafe();
  std::vector<ParquetRow> rows(static_cast<size_t>(table->num_rows()));
  int64_t first = 0;
  for (int group = 0; group < row_group; ++group) {
    first += reader.parquet_reader()->metadata()->RowGroup(group)->num_rows();
  }
  for (size_t i = 0; i < rows.size(); ++i) rows[i].number = first + static_cast<int64_t>(i);
  const auto fill = [&](const std::string& key, auto&& set) {
    const auto column = table->GetColumnByName(key);
    return column == nullptr || for_each_text(*column, set);
  };
  const bool texts = fill(text_key, [&](size_t row, std::string_view text) {
    rows[row].has_text = true;
    rows[row].text = text;
  });
  if (!texts || table->GetColumnByName(text_key) == nullptr) {
    return make_error(ErrorCode::kInvalid, "column \"{}\" does not hold texts", text_key);
  }
  fill("url", [&](size_t row, std::string_view text) { rows[row].url = text; });
  fill("title", [&](size_t row, std::string_view text) { rows[row].title = text; });
  fill("language", [&](size_t row, std::string_view text) { rows[row].language = text; });
  return rows;
}

}  // namespace

Result<int> parquet_row_groups(std::string_view bytes) {
  ASSIGN_OR_RETURN(const Reader reader, open(bytes));
  return reader->num_row_groups();
}

Result<std::vector<ParquetRow>> read_parquet(std::string_view bytes, int row_group,
                                             const std::string& text_key) {
  ASSIGN_OR_RETURN(const Reader reader, open(bytes));
  try {
    return read_rows(*reader, row_group, text_key);
  } catch (const std::exception& error) {
    return invalid(error.what());
  }
}

}  // namespace flywheel::data
