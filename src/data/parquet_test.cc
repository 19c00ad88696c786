// Texts in Parquet however Arrow stores them, beside the same texts as they usually are.
#include <arrow/api.h>
#include <arrow/io/memory.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <parquet/arrow/writer.h>

#include <random>

#include "base/philox.h"
#include "data/parquet_internal.h"

namespace flywheel::data {
namespace {

using Texts = std::vector<std::optional<std::string>>;

template <typename Builder>
std::shared_ptr<arrow::Array> build(Builder& builder, const Texts& texts) {
  for (const auto& text : texts) EXPECT_TRUE((text ? builder.Append(*text) : builder.AppendNull()).ok());
  return builder.Finish().ValueOrDie();
}

// What pandas' categories are.
std::shared_ptr<arrow::Array> dictionary(const Texts& texts) {
  arrow::DictionaryBuilder<arrow::StringType> builder;
  return build(builder, texts);
}

std::shared_ptr<arrow::Array> large_dictionary(const Texts& texts) {
  arrow::DictionaryBuilder<arrow::LargeStringType> builder;
  return build(builder, texts);
}

template <typename Builder>
std::shared_ptr<arrow::Array> plain(const Texts& texts) {
  Builder builder;
  return build(builder, texts);
}

std::string file_of(const std::shared_ptr<arrow::Array>& texts, int64_t rows_in_group) {
  const auto schema =
      arrow::schema({arrow::field("text", texts->type()), arrow::field("title", texts->type())});
  const auto table = arrow::Table::Make(schema, {texts, texts});
  const auto sink = arrow::io::BufferOutputStream::Create().ValueOrDie();
  // With Arrow's own schema beside Parquet's, as pyarrow and pandas write it: the types come back.
  const auto status = parquet::arrow::WriteTable(
      *table, arrow::default_memory_pool(), sink, rows_in_group, parquet::default_writer_properties(),
      parquet::ArrowWriterProperties::Builder().store_schema()->build());
  EXPECT_TRUE(status.ok()) << status.ToString();
  return sink->Finish().ValueOrDie()->ToString();
}

TEST(Parquet, EveryTypeOfTextIsRead) {
  Philox rng(std::random_device{}());
  Texts texts;
  for (int i = 0; i < 500; ++i) {
    if (rng.below(10) == 0) {
      texts.emplace_back();
    } else {
      texts.emplace_back("täxt " + std::string(rng.below(40), 'x') + std::to_string(rng.below(30)));
    }
  }
  using Make = std::shared_ptr<arrow::Array> (*)(const Texts&);
  const std::pair<const char*, Make> makes[] = {{"string", plain<arrow::StringBuilder>},
                                                {"large_string", plain<arrow::LargeStringBuilder>},
                                                {"string_view", plain<arrow::StringViewBuilder>},
                                                {"binary", plain<arrow::BinaryBuilder>},
                                                {"large_binary", plain<arrow::LargeBinaryBuilder>},
                                                {"binary_view", plain<arrow::BinaryViewBuilder>},
                                                {"dictionary", dictionary},
                                                {"large dictionary", large_dictionary}};
  for (const auto& [type, make] : makes) {
    SCOPED_TRACE(type);
    const std::string bytes = file_of(make(texts), 170);
    const auto groups = parquet_row_groups(bytes);
    ASSERT_TRUE(groups.ok()) << groups.error().message;
    EXPECT_EQ(*groups, 3);
    size_t at = 0;
    for (int group = 0; group < *groups; ++group) {
      const auto rows = read_parquet(bytes, group, "text");
      ASSERT_TRUE(rows.ok()) << rows.error().message;
      for (const ParquetRow& row : *rows) {
        ASSERT_EQ(row.number, static_cast<int64_t>(at));
        ASSERT_EQ(row.has_text, texts[at].has_value());
        ASSERT_EQ(row.text, texts[at].value_or(""));
        ASSERT_EQ(row.title, row.text);
        ++at;
      }
    }
    EXPECT_EQ(at, texts.size());
  }
}

TEST(Parquet, ADictionaryOfNumbersIsNoText) {
  arrow::DictionaryBuilder<arrow::Int64Type> builder;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(builder.Append(i % 2).ok());
  const auto rows = read_parquet(file_of(builder.Finish().ValueOrDie(), 10), 0, "text");
  ASSERT_FALSE(rows.ok());
  EXPECT_THAT(rows.error().message, testing::HasSubstr("does not hold texts"));
}

TEST(Parquet, BrokenDictionariesAreErrorsNotCrashes) {
  const std::string good = file_of(dictionary({"one", "two", "one", std::nullopt, "three"}), 5);
  Philox rng(5);
  for (int round = 0; round < 400; ++round) {
    std::string bad = good;
    for (uint64_t edits = 1 + rng.below(8); edits-- > 0;)
      bad[rng.below(bad.size())] = static_cast<char>(rng.below(256));
    if (const auto rows = read_parquet(bad, 0, "text"); rows.ok()) {
      EXPECT_LE(rows->size(), 5u);
    }
  }
}

}  // namespace
}  // namespace flywheel::data
