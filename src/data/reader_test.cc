#include "data/reader.h"

#include <arrow/api.h>
#include <arrow/io/memory.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <parquet/arrow/writer.h>
#include <zstd.h>

#include "base/env.h"
#include "base/philox.h"
#include "data/gzip_for_test.h"
#include "data/parquet_internal.h"

namespace flywheel::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string zstd(const std::string& bytes) {
  std::string out(ZSTD_compressBound(bytes.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), bytes.data(), bytes.size(), 3));
  return out;
}

// Everything that the folder holds, in order.
UnitResult read_all(const std::string& input, const InputConfig& config = {}) {
  const InputList inputs = list_inputs({input}, config);
  UnitResult all;
  for (const ReadUnit& unit : plan_units(inputs, config)) {
    UnitResult one = read_unit(inputs, unit, config, {});
    std::move(one.documents.begin(), one.documents.end(), std::back_inserter(all.documents));
    std::move(one.dropped.begin(), one.dropped.end(), std::back_inserter(all.dropped));
    std::move(one.quarantined.begin(), one.quarantined.end(), std::back_inserter(all.quarantined));
    all.bytes_in += one.bytes_in;
  }
  return all;
}

TEST(Reader, MalformedLinesAreQuarantinedWithTheirPlace) {
  TempFolder folder;
  write_file(folder / "a.jsonl",
             "{\"text\": \"one\", \"url\": \"u\", \"title\": \"t\"}\n"
             "not json\n"
             "\n"
             "{\"text\": 5}\r\n"
             "[1]\n"
             "{\"txt\": \"x\"}\n"
             "{\"text\": \"bad \xFF\"}\n"
             "{\"text\": \"  \"}\n"
             "{\"text\": \"last\"}")
      .value();
  const UnitResult all = read_all(folder / "a.jsonl");
  ASSERT_EQ(all.documents.size(), 2u);
  EXPECT_EQ(all.documents[0].url, "u");
  EXPECT_EQ(all.documents[0].title, "t");
  EXPECT_EQ(all.documents[1].place, "line 9");
  EXPECT_EQ(all.documents[1].text, "last");
  std::vector<std::string> places;
  for (const Quarantined& one : all.quarantined) places.push_back(one.place);
  EXPECT_THAT(places, ElementsAre("line 2", "line 4", "line 5", "line 6", "line 7"));
  EXPECT_THAT(all.quarantined[1].reason, HasSubstr("\"text\" is a number"));
  EXPECT_THAT(all.quarantined[3].reason, HasSubstr("no key \"text\""));
  ASSERT_EQ(all.dropped.size(), 1u);
  EXPECT_EQ(all.dropped[0].rule, "no_text");
  const UnitResult short_lines = read_all(folder / "a.jsonl", {.max_line_bytes = 20});
  EXPECT_THAT(short_lines.quarantined[0].reason, HasSubstr("max_line_bytes"));
}

TEST(Reader, ALargeFileInPiecesIsTheSameFile) {
  TempFolder folder;
  Philox rng(4);
  std::string text;
  std::vector<std::pair<int64_t, std::string>> wanted;
  for (int64_t line = 1; text.size() < (20u << 20); ++line) {
    const size_t length = rng.below(40) == 0 ? 200000 : rng.below(3000);
    if (rng.below(50) == 0) {
      text += '\n';
      continue;
    }
    std::string word(length + 1, static_cast<char>('a' + rng.below(26)));
    text += "{\"text\":\"" + word + "\"}\n";
    wanted.emplace_back(line, std::move(word));
  }
  write_file(folder / "big.jsonl", text).value();
  const InputList inputs = list_inputs({folder / "big.jsonl"}, {});
  EXPECT_EQ(plan_units(inputs, {}).size(), 3u);
  const UnitResult all = read_all(folder / "big.jsonl");
  ASSERT_EQ(all.documents.size(), wanted.size());
  EXPECT_EQ(all.bytes_in, static_cast<int64_t>(text.size()));
  for (size_t i = 0; i < wanted.size(); ++i) {
    ASSERT_EQ(all.documents[i].place, "line " + std::to_string(wanted[i].first));
    ASSERT_EQ(all.documents[i].text, wanted[i].second);
  }
}

TEST(Reader, CompressedFilesWholeAndBroken) {
  TempFolder folder;
  const std::string lines = "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";
  write_file(folder / "a.jsonl.gz", gzip(lines) + gzip("{\"text\":\"three\"}\n")).value();
  write_file(folder / "b.jsonl.zst", zstd(lines)).value();
  write_file(folder / "c.jsonl.gz", gzip(lines).substr(0, 20)).value();
  write_file(folder / "d.jsonl.zst", zstd(lines).substr(0, 12)).value();
  write_file(folder / "e.txt.gz", "not gzip at all").value();
  write_file(folder / "f.txt.zst", zstd(std::string(1 << 20, 'x'))).value();
  const UnitResult all = read_all(folder.path(), {.max_file_bytes = 1 << 16});
  EXPECT_EQ(all.documents.size(), 5u);
  ASSERT_EQ(all.quarantined.size(), 4u);
  EXPECT_THAT(all.quarantined[0].reason, HasSubstr("ends too early"));
  EXPECT_THAT(all.quarantined[1].reason, HasSubstr("zstd"));
  EXPECT_THAT(all.quarantined[2].reason, HasSubstr("gzip"));
  EXPECT_THAT(all.quarantined[3].reason, HasSubstr("max_file_bytes"));
}

TEST(Reader, WhatMemoryDoesNotHoldIsQuarantinedUnlessTheConfigSaysItsBound) {
  TempFolder folder;
  std::string lines;
  for (int i = 0; i < 200; ++i) lines += "{\"text\":\"a line\"}\n";
  write_file(folder / "a.jsonl", lines).value();
  write_file(folder / "b.jsonl.gz", gzip(lines)).value();
  write_file(folder / "c.txt", std::string(2000, 'x')).value();
  InputConfig config;
  bound_by_memory(config, 2, 2 * 4 * 1000);
  const UnitResult bounded = read_all(folder.path(), config);
  EXPECT_EQ(bounded.documents.size(), 200u) << "lines are read where the file is mapped";
  ASSERT_EQ(bounded.quarantined.size(), 2u);
  for (const Quarantined& one : bounded.quarantined) {
    EXPECT_THAT(one.reason, HasSubstr("a file of 1000 bytes"));
    EXPECT_THAT(one.reason, HasSubstr("input.max_file_bytes"));
  }
  config.max_file_bytes = 1 << 20;
  EXPECT_EQ(read_all(folder.path(), config).documents.size(), 401u);
}

TEST(Reader, FoldersPatternsAndWhatIsLeftOut) {
  TempFolder folder;
  for (const char* name :
       {"a.html", "b.HTM", "c.txt", "d.css", "_sources/e.txt", ".hidden.txt", "sub/f.md", "g"}) {
    write_file(folder / name, "<p>Some text in the file.</p>").value();
  }
  const InputList all = list_inputs({folder.path(), folder / "a.html"}, {});
  std::vector<std::string> names;
  for (const InputFile& file : all.files) names.push_back(file.path.substr(folder.path().size() + 1));
  EXPECT_THAT(names, ElementsAre("a.html", "b.HTM", "c.txt", "sub/f.md"));
  EXPECT_EQ(all.skipped.at(".css"), 1);
  EXPECT_EQ(all.skipped.at("no ending"), 1);
  EXPECT_EQ(all.skipped.at("excluded"), 1) << "an excluded folder is not entered";
  EXPECT_EQ(list_inputs({folder / "*.html"}, {}).files.size(), 1u);
  EXPECT_EQ(list_inputs({folder.path()}, {.formats = {"html"}}).files.size(), 2u);
  EXPECT_EQ(list_inputs({folder.path()}, {.include = {"sub/*"}}).files.size(), 1u);
  EXPECT_EQ(list_inputs({"file://" + folder.path()}, {}).files.size(), 4u);
  EXPECT_THROW(list_inputs({folder / "nothing"}, {}), UserError);
  EXPECT_THROW(list_inputs({folder / "d.css"}, {}), UserError);
  EXPECT_THROW(list_inputs({folder.path()}, {.formats = {"pdf"}}), UserError);
  EXPECT_THROW(list_inputs({folder.path()}, {.include = {"none*"}}), UserError);
}

TEST(Reader, ZeroBytesAreNotText) {
  TempFolder folder;
  write_file(folder / "a.txt", std::string("a\0b", 3)).value();
  const UnitResult all = read_all(folder.path());
  EXPECT_TRUE(all.documents.empty());
  ASSERT_EQ(all.quarantined.size(), 1u);
  EXPECT_THAT(all.quarantined[0].reason, HasSubstr("zero bytes"));
}

std::string parquet_file(const std::vector<const char*>& texts, int64_t rows_in_group, bool numbers = false) {
  arrow::StringBuilder text, title;
  arrow::Int64Builder number;
  for (const char* one : texts) {
    EXPECT_TRUE((one == nullptr ? text.AppendNull() : text.Append(one)).ok());
    EXPECT_TRUE(title.Append("title").ok());
    EXPECT_TRUE(number.Append(7).ok());
  }
  const auto schema = arrow::schema({arrow::field("id", arrow::int64()), arrow::field("title", arrow::utf8()),
                                     arrow::field("text", numbers ? arrow::int64() : arrow::utf8())});
  const auto ids = number.Finish().ValueOrDie();
  const auto table = arrow::Table::Make(
      schema, {ids, title.Finish().ValueOrDie(), numbers ? ids : text.Finish().ValueOrDie()});
  const auto sink = arrow::io::BufferOutputStream::Create().ValueOrDie();
  EXPECT_TRUE(parquet::arrow::WriteTable(*table, arrow::default_memory_pool(), sink, rows_in_group).ok());
  return sink->Finish().ValueOrDie()->ToString();
}

TEST(Reader, Parquet) {
  TempFolder folder;
  write_file(folder / "a.parquet", parquet_file({"one", "two", nullptr, "four", "five"}, 2)).value();
  const InputList inputs = list_inputs({folder.path()}, {});
  EXPECT_EQ(plan_units(inputs, {}).size(), 3u);
  const UnitResult all = read_all(folder.path());
  ASSERT_EQ(all.documents.size(), 4u);
  EXPECT_EQ(all.documents[3].text, "five");
  EXPECT_EQ(all.documents[3].place, "row 4");
  EXPECT_EQ(all.documents[3].title, "title");
  ASSERT_EQ(all.quarantined.size(), 1u);
  EXPECT_EQ(all.quarantined[0].place, "row 2");
  EXPECT_THAT(read_all(folder.path(), {.text_key = "body"}).quarantined[0].reason,
              HasSubstr("no column \"body\""));

  write_file(folder / "a.parquet", parquet_file({"one"}, 1, true)).value();
  EXPECT_THAT(read_all(folder.path()).quarantined[0].reason, HasSubstr("does not hold texts"));
}

TEST(Reader, BrokenParquetIsQuarantined) {
  TempFolder folder;
  const std::string good = parquet_file({"one", "two", "three", "four", "five"}, 2);
  Philox rng(77);
  for (int round = 0; round < 400; ++round) {
    std::string bad = good;
    if (round % 4 == 0) {
      bad.resize(rng.below(bad.size()));
    } else {
      for (uint64_t edits = 1 + rng.below(8); edits-- > 0;)
        bad[rng.below(bad.size())] = static_cast<char>(rng.below(256));
    }
    write_file(folder / "a.parquet", bad).value();
    const UnitResult all = read_all(folder.path());
    EXPECT_LE(all.documents.size(), 5u + all.quarantined.size() * 5);
    if (round % 4 == 0) {
      EXPECT_FALSE(all.quarantined.empty());
    }
  }
}

TEST(Reader, DocumentsAsParquetReadBack) {
  TempFolder folder;
  Philox rng(8);
  std::string lines;
  std::vector<std::string> texts;
  for (int i = 0; i < 3000; ++i) {
    Document document;
    document.id = document_id("f", std::to_string(i));
    document.file = "f";
    document.url = "u" + std::to_string(i);
    document.text = "täxt " + std::to_string(rng.next_u64()) + std::string(rng.below(3000), 'x');
    texts.push_back(document.text);
    lines += to_json_line(document) + "\n";
  }
  write_file(folder / "a.jsonl", lines).value();
  write_parquet(folder / "a.jsonl", folder / "out/a.parquet").value();
  const UnitResult all = read_all(folder / "out");
  ASSERT_EQ(all.documents.size(), texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    ASSERT_EQ(all.documents[i].text, texts[i]);
    ASSERT_EQ(all.documents[i].url, "u" + std::to_string(i));
  }
  EXPECT_TRUE(all.quarantined.empty());
}

std::string garbage(Philox& rng, size_t size) {
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(rng.below(256));
  return bytes;
}

// Good files between bad ones of every kind: the good are read whole, each bad one is said with its place.
TEST(Reader, GarbageIsQuarantinedWithItsPlaceByEveryReader) {
  Philox rng(2026);
  for (int round = 0; round < 40; ++round) {
    TempFolder folder;
    for (const char* name :
         {"bad.html", "bad.txt", "bad.jsonl", "bad.parquet", "bad.txt.gz", "bad.jsonl.zst"}) {
      write_file(folder / name, garbage(rng, 200 + rng.below(20000))).value();
    }
    write_file(folder / "good.html",
               "<html><body><p>The first paragraph of the page.</p><p>The second one.</p></body></html>")
        .value();
    write_file(folder / "good.txt", "Some text.").value();
    write_file(folder / "good.jsonl",
               "{\"text\": \"a\"}\n" + garbage(rng, 1 + rng.below(50)) + "\n{\"text\": \"b\"}\n")
        .value();
    write_file(folder / "good.parquet", parquet_file({"c", "d"}, 1)).value();
    const UnitResult all = read_all(folder.path());
    std::vector<std::string> texts;
    for (const Document& document : all.documents) texts.push_back(document.text);
    EXPECT_THAT(texts, ElementsAre(HasSubstr("The first paragraph"), "a", "b", "c", "d", "Some text."));
    std::map<std::string, std::vector<std::string>> places;
    for (const Quarantined& one : all.quarantined) {
      EXPECT_FALSE(one.reason.empty());
      places[one.file.substr(folder.path().size() + 1)].push_back(one.place);
    }
    for (const char* name : {"bad.html", "bad.txt"}) {
      ASSERT_EQ(places[name].size(), 1u) << name;
      EXPECT_TRUE(places[name][0].starts_with("byte ")) << places[name][0];
    }
    for (const char* name : {"bad.parquet", "bad.txt.gz", "bad.jsonl.zst"})
      EXPECT_EQ(places[name].size(), 1u) << name;
    for (const char* name : {"bad.jsonl", "good.jsonl"}) {
      ASSERT_FALSE(places[name].empty()) << name;
      for (const std::string& place : places[name]) EXPECT_TRUE(place.starts_with("line ")) << place;
    }
  }
}

// A file that ends too early gives what stands in front of its end; the rest is said, or was never a unit of
// its own.
TEST(Reader, ClippedFilesKeepWhatIsWholeAndSayTheRest) {
  Philox rng(7);
  std::string lines;
  for (int i = 0; i < 50; ++i) lines += "{\"text\": \"" + std::string(1 + rng.below(60), 'x') + "\"}\n";
  const std::string table = parquet_file({"one", "two", "three", "four", "five"}, 2);
  const std::string page =
      "<html><body><p>The first paragraph of the page.</p><p>The second one, längst.</p></body></html>";
  for (int round = 0; round < 100; ++round) {
    TempFolder folder;
    const std::string clipped = lines.substr(0, 1 + rng.below(lines.size() - 1));
    write_file(folder / "a.jsonl", clipped).value();
    UnitResult all = read_all(folder / "a.jsonl");
    const auto whole = std::count(clipped.begin(), clipped.end(), '\n');
    // Without its line end the last line can still be whole.
    const bool torn = clipped.back() != '\n' && clipped.back() != '}';
    ASSERT_EQ(static_cast<int64_t>(all.documents.size()), whole + (clipped.back() == '}' ? 1 : 0));
    ASSERT_EQ(all.quarantined.size(), torn ? 1u : 0u);
    if (torn) {
      EXPECT_EQ(all.quarantined[0].place, "line " + std::to_string(whole + 1));
    }

    const size_t cut = 1 + rng.below(20);
    const std::string packed_gz = gzip(lines), packed_zst = zstd(lines);
    write_file(folder / "b.jsonl.gz", packed_gz.substr(0, packed_gz.size() - cut)).value();
    write_file(folder / "c.jsonl.zst", packed_zst.substr(0, packed_zst.size() - cut)).value();
    write_file(folder / "d.parquet", table.substr(0, table.size() - cut)).value();
    for (const char* name : {"b.jsonl.gz", "c.jsonl.zst", "d.parquet"}) {
      all = read_all(folder / name);
      ASSERT_EQ(all.quarantined.size(), 1u) << name;
      EXPECT_TRUE(all.documents.empty());
      EXPECT_TRUE(all.quarantined[0].file.ends_with(name));
    }
    // HTML has no end that must be there.
    write_file(folder / "e.html", page.substr(0, 50 + rng.below(page.size() - 50))).value();
    all = read_all(folder / "e.html");
    ASSERT_EQ(all.documents.size(), 1u);
    EXPECT_THAT(all.documents[0].text, HasSubstr("The first paragraph"));
  }
}

TEST(Reader, CommonCrawlDocuments) {
  const std::string folder = env::test_data() + "/web/common-crawl/";
  if (env::test_data().empty() || !path_exists(folder)) GTEST_SKIP() << "no Common Crawl documents";
  const UnitResult plain = read_all(folder + "multiple_files/cc_en_head-0091.jsonl");
  const UnitResult packed = read_all(folder + "multiple_files/cc_en_head-0091.jsonl.gz");
  EXPECT_EQ(plain.documents.size(), 10u);
  EXPECT_EQ(plain.documents.size(), packed.documents.size());
  EXPECT_EQ(plain.quarantined.size(), 0u);
  for (size_t i = 0; i < plain.documents.size(); ++i)
    EXPECT_EQ(plain.documents[i].text, packed.documents[i].text);
  EXPECT_EQ(read_all(folder + "provided/documents/000.json.gz").documents.size(), 10u);
}

}  // namespace
}  // namespace flywheel::data
