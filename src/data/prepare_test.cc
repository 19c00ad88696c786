#include "data/prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/config.h"
#include "base/file_lock.h"
#include "base/hash.h"
#include "base/metrics.h"
#include "data/document.h"
#include "data/prepare_for_test.h"
#include "data/record_internal.h"
#include "data/shards.h"
#include "model/tokenizer.h"

namespace flywheel::data {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(Prepare, FromRawFilesToTokensWithEveryDocumentAccountedFor) {
  TempFolder folder;
  make_raw(folder / "raw");
  ThreadPool pool(2);
  const PrepareReport report =
      prepare({.inputs = {folder / "raw"}, .output = folder / "out", .config = small_config()}, pool).value();
  ASSERT_EQ(report.stages.size(), 5u);
  const StageReport &extract = report.stages[0], &clean = report.stages[1], &dedup = report.stages[2];
  EXPECT_EQ(report.files, 45);
  EXPECT_EQ(extract.documents_in, 44 + 60);
  EXPECT_EQ(extract.documents_out, 43 + 60);
  EXPECT_EQ(extract.quarantined, 3);
  EXPECT_EQ(extract.dropped.at("no_text").documents, 1);
  EXPECT_EQ(clean.documents_in, extract.documents_out);
  EXPECT_EQ(clean.dropped.at("gopher_quality.min_words").documents, 1);
  EXPECT_EQ(dedup.dropped.at("dedup.exact").documents, 1);
  EXPECT_EQ(dedup.dropped.at("dedup.near").documents, 1);
  EXPECT_EQ(dedup.documents_out, 100);

  const std::string quarantined = read_file(folder / "out/quarantined.jsonl").value();
  EXPECT_THAT(quarantined, HasSubstr("\"place\":\"line 5\""));
  const std::string dropped = read_file(folder / "out/dropped.jsonl").value();
  EXPECT_EQ(std::count(dropped.begin(), dropped.end(), '\n'), 4);
  EXPECT_THAT(dropped, HasSubstr("page07.html"));
  EXPECT_THAT(read_file(folder / "out/clusters.jsonl").value(), HasSubstr("z-near.html"));

  // The shards hold the documents: decoded, each is the text of one line.
  const model::Tokenizer tokenizer = model::Tokenizer::load(folder / "out/tokenizer/tokenizer.json").value();
  EXPECT_EQ(tokenizer.vocab_size(), 400);
  std::map<std::string, int> texts;
  std::string rest = read_file(folder / "out/documents.jsonl").value();
  for (size_t at = 0, end; (end = rest.find('\n', at)) != std::string::npos; at = end + 1) {
    ++texts[document_from_json(rest.substr(at, end - at))->text];
  }
  int64_t documents = 0;
  for (const char* split : {"train", "validation"}) {
    const TokenShards shards = TokenShards::open(folder / "out/shards/" + split).value();
    shards.verify().value();
    std::vector<int32_t> ids(static_cast<size_t>(shards.num_tokens()));
    shards.read(0, ids).value();
    const auto end = tokenizer.token_id("<|endoftext|>").value();
    for (auto begin = ids.begin(); begin != ids.end();) {
      const auto stop = std::find(begin, ids.end(), end);
      ASSERT_NE(stop, ids.end());
      EXPECT_EQ(texts[tokenizer.decode(std::vector<int32_t>(begin, stop))], 1);
      begin = stop + 1;
      ++documents;
    }
    EXPECT_GT(shards.num_documents(), 5);
  }
  EXPECT_EQ(documents, 100);
  const PrepareReport again = read_report(folder / "out").value();
  EXPECT_EQ(to_json(again).dump(), to_json(report).dump());
  EXPECT_THAT(to_text(report), HasSubstr("gopher_quality.min_words"));
  // The report says which rules were in force.
  std::map<std::string, RuleSetting> rules;
  for (const RuleSetting& rule : report.rules) rules[rule.name] = rule;
  EXPECT_TRUE(rules.at("gopher_quality.min_words").on);
  EXPECT_EQ(rules.at("gopher_quality.min_words").value, "50");
  EXPECT_FALSE(rules.at("gopher_repetition.max_duplicate_lines").on);
  EXPECT_FALSE(rules.at("c4.terminal_punctuation").on);
  EXPECT_FALSE(rules.at("c4.min_line_words").on);
  EXPECT_TRUE(rules.at("c4.no_lorem_ipsum").on);
  EXPECT_TRUE(rules.at("dedup.near").on);
  EXPECT_THAT(to_text(report), HasSubstr("rules off: gopher_repetition.max_duplicate_lines"));
  const std::string page = Metrics::global().prometheus_text();
  EXPECT_THAT(page, HasSubstr("flywheel_data_documents_kept_total{stage=\"dedup\"} "));
  EXPECT_THAT(page, HasSubstr("flywheel_data_documents_dropped_total{rule=\"no_text\",stage=\"extract\"} "));
}

TEST(Prepare, TheSameBytesForAnyNumberOfThreads) {
  TempFolder folder;
  make_raw(folder / "raw");
  std::string wanted;
  for (const int threads : {1, 2, 5}) {
    const std::string out = folder / ("out" + std::to_string(threads));
    ThreadPool pool(threads);
    ASSERT_TRUE(prepare({.inputs = {folder / "raw"}, .output = out, .config = small_config()}, pool).ok());
    if (wanted.empty()) wanted = outputs_hash(out);
    EXPECT_EQ(outputs_hash(out), wanted) << threads << " threads";
  }
}

TEST(Prepare, OnlyWhatChangedIsDoneAgain) {
  using testing::ElementsAre;
  TempFolder folder;
  make_raw(folder / "raw");
  ThreadPool pool(2);
  DataConfig config = small_config();
  const auto run = [&] {
    return prepare({.inputs = {folder / "raw"}, .output = folder / "out", .config = config}, pool).value();
  };
  EXPECT_THAT(reused(run()), ElementsAre(false, false, false, false, false));
  const std::string first = outputs_hash(folder / "out");
  EXPECT_THAT(reused(run()), ElementsAre(true, true, true, true, true));
  config.quality.gopher_quality.min_words = 40;
  EXPECT_THAT(reused(run()), ElementsAre(true, false, false, false, false));
  config.shards.seed = 5;
  EXPECT_THAT(reused(run()), ElementsAre(true, true, true, true, false));
  config = small_config();
  run();
  EXPECT_EQ(outputs_hash(folder / "out"), first);
  // Killed after a stage: its record is not there, or its output was cut.
  remove_all(folder / "out/stages/dedup.json").value();
  EXPECT_THAT(reused(run()), ElementsAre(true, true, false, true, true));
  write_file(folder / "out/stages/clean.jsonl", "{\"text\":").value();
  EXPECT_THAT(reused(run()), ElementsAre(true, false, true, true, true));
  EXPECT_EQ(outputs_hash(folder / "out"), first);
  write_file(folder / "raw/html/page00.html", "<p>Something else.</p>").value();
  EXPECT_THAT(reused(run()), ElementsAre(false, false, false, false, false));
}

TEST(Prepare, RunsAndArtifactsAreRecordedWithTheirLineage) {
  TempFolder folder;
  make_raw(folder / "raw");
  store::Store store = store::Store::open(folder / "home").value();
  ThreadPool pool(2);
  PrepareRequest request{.inputs = {folder / "raw/html", folder / "raw/lines.jsonl"},
                         .output = folder / "out",
                         .config = small_config(),
                         .store = &store};
  const PrepareReport report = prepare(request, pool).value();
  EXPECT_EQ(report.artifacts.at("dataset"), "small:1");
  const std::string tree = store::draw_lineage(store.lineage("small").value());
  EXPECT_THAT(tree, HasSubstr("small-tokenizer:1"));
  EXPECT_THAT(tree, HasSubstr("raw-html"));
  EXPECT_THAT(tree, HasSubstr("lines.jsonl"));
  const std::string files = store.path_of(store.resolve("small").value(), store::Store::Verify::kYes).value();
  EXPECT_EQ(TokenShards::open(files + "/shards/train")->num_tokens(),
            TokenShards::open(folder / "out/shards/train")->num_tokens());
  // The same again is the same version.
  EXPECT_EQ(prepare(request, pool)->artifacts.at("dataset"), "small:1");
  EXPECT_EQ(store.list_runs({.kind = "data"})->size(), 2u);
  // But not when its tokenizer was given up in between: the dataset's lineage must lead to one that is there.
  ASSERT_TRUE(store.remove_artifact("small-tokenizer:1").ok());
  const PrepareReport again = prepare(request, pool).value();
  EXPECT_EQ(again.artifacts.at("tokenizer"), "small-tokenizer:2");
  EXPECT_EQ(again.artifacts.at("dataset"), "small:2");
  EXPECT_THAT(store::draw_lineage(store.lineage("small").value()), HasSubstr("small-tokenizer:2"));
  EXPECT_EQ(prepare(request, pool)->artifacts.at("dataset"), "small:2");
}

TEST(Prepare, EachNameHasArtifactsOfItsOwn) {
  TempFolder folder;
  make_raw(folder / "raw");
  store::Store store = store::Store::open(folder / "home").value();
  ThreadPool pool(2);
  const auto run = [&](const std::string& name, const std::string& output) {
    PrepareRequest request{
        .inputs = {folder / "raw"}, .output = folder / output, .config = small_config(), .store = &store};
    request.config.name = name;
    return prepare(request, pool).value().artifacts;
  };
  EXPECT_EQ(run("first", "out").at("dataset"), "first:1");
  const auto second = run("second", "out");
  EXPECT_EQ(second.at("dataset"), "second:1");
  EXPECT_EQ(second.at("tokenizer"), "second-tokenizer:1");
  const std::string tree = store::draw_lineage(store.lineage("second").value());
  EXPECT_THAT(tree, HasSubstr("second-tokenizer:1"));
  EXPECT_THAT(tree, HasSubstr("second-1")) << "the run that made it";
  EXPECT_THAT(tree, HasSubstr("raw:1"));
  EXPECT_THAT(tree, Not(HasSubstr("first")));
  const store::Artifact stored = store.resolve("second").value();
  EXPECT_EQ(stored.run, "second-1");
  EXPECT_THAT(read_file(store.path_of(stored).value() + "/config.yaml").value(), HasSubstr("name: second"));
  EXPECT_EQ(run("third", "elsewhere").at("dataset"), "third:1");
  EXPECT_EQ(run("first", "out").at("dataset"), "first:1");
  EXPECT_EQ(run("second", "elsewhere").at("dataset"), "second:1");
}

// A dataset may be called as its folder is; a name that something else has is refused before any work.
TEST(Prepare, NamesThatMeet) {
  TempFolder folder;
  make_raw(folder / "mix");
  store::Store store = store::Store::open(folder / "home").value();
  ThreadPool pool(2);
  PrepareRequest request{
      .inputs = {folder / "mix"}, .output = folder / "out", .config = small_config(), .store = &store};
  request.config.name = "mix";
  EXPECT_EQ(prepare(request, pool).value().artifacts.at("dataset"), "mix:1");
  EXPECT_THAT(store::draw_lineage(store.lineage("mix").value()), HasSubstr("mix-source:1"));
  EXPECT_EQ(prepare(request, pool).value().artifacts.at("dataset"), "mix:1");
  request.config.name = "mix-tokenizer", request.output = folder / "other";
  const auto refused = prepare(request, pool);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("the store has a tokenizer called mix-tokenizer"));
  EXPECT_FALSE(path_exists(folder / "other"));
}

TEST(Prepare, EachStagesLastWordIsThatAllOfItIsDone) {
  TempFolder folder;
  make_raw(folder / "raw");
  ThreadPool pool(2);
  PrepareRequest request{.inputs = {folder / "raw"}, .output = folder / "out", .config = small_config()};
  request.config.tokenizer.vocab_size = 100'000;  // more than the text gives
  std::map<std::string, std::pair<int64_t, int64_t>> last;
  request.progress = [&](const std::string& stage, int64_t done, int64_t total) {
    last[stage] = {done, total};
  };
  ASSERT_TRUE(prepare(request, pool).ok());
  EXPECT_EQ(last.size(), 5u);
  for (const auto& [stage, at] : last) EXPECT_EQ(at.first, at.second) << stage;
  EXPECT_EQ(last.at("tokenizer").first,
            model::Tokenizer::load(folder / "out/tokenizer/tokenizer.json")->vocab_size() - 257);
}

TEST(Prepare, ErrorsThatTheUserCanMend) {
  TempFolder folder;
  make_raw(folder / "raw");
  ThreadPool pool(1);
  const auto message = [&](const DataConfig& config, const std::string& input) -> std::string {
    try {
      const auto result = prepare({.inputs = {input}, .output = folder / "out", .config = config}, pool);
      return result.ok() ? "" : result.error().message;
    } catch (const UserError& error) {
      return error.what();
    }
  };
  DataConfig config = small_config();
  EXPECT_THAT(message(config, folder / "nothing"), HasSubstr("no such file or folder"));
  config.quality.gopher_quality.min_words = 100000;
  EXPECT_THAT(message(config, folder / "raw"), HasSubstr("no document is left"));
  EXPECT_THAT(
      message(config, folder / "raw"),
      testing::ContainsRegex("gopher_quality.min_words dropped [0-9]+ of [0-9]+ .* where 100000 is the "
                             "least.*--set quality.gopher_quality.min_words=[0-9]"));
  EXPECT_EQ(read_report(folder / "out")->stages[1].documents_out, 0);
  config = small_config();
  config.tokenizer.path = folder / "no-tokenizer.json";
  EXPECT_THAT(message(config, folder / "raw"), HasSubstr("tokenizer.path"));
  config = small_config();
  config.name = "../x";
  EXPECT_THAT(message(config, folder / "raw"), HasSubstr("name: \"../x\" cannot be a name"));
  config = small_config();
  config.tokenizer.vocab_size = 10;
  EXPECT_THAT(message(config, folder / "raw"), HasSubstr("vocab_size"));
  config = small_config();
  config.shards.validation_fraction = 1;
  EXPECT_THAT(message(config, folder / "raw"), HasSubstr("validation_fraction"));
  // Every value is checked before any work: no stage has written anything.
  const auto expect_early = [&](const std::string& set, const std::string& wanted) {
    std::string got = "nothing";
    try {
      config = parse_config<DataConfig>("test", "{}", {set});
      (void)prepare({.inputs = {folder / "raw"}, .output = folder / "early", .config = config}, pool);
    } catch (const UserError& error) {
      got = error.what();
    }
    EXPECT_THAT(got, HasSubstr(wanted)) << set;
    EXPECT_FALSE(path_exists(folder / "early")) << set;
  };
  expect_early("dedup.bands=0", "dedup: bands 0");
  expect_early("dedup.rows=100000000", "dedup: bands 14, rows 100000000");
  expect_early("shards.shard_tokens=0", "shards.shard_tokens: 0 must be at least 1");
  expect_early("shards.validation_fraction=1.5", "shards.validation_fraction");
  expect_early("shards.validation_fraction=.nan", "shards.validation_fraction");
  expect_early("tokenizer.vocab_size=256", "need at least 257");
  expect_early("tokenizer.vocab_size=1000000000000", "vocab_size 1000000000000: at most 16777216");
  expect_early("tokenizer.pattern=gpt5", "\"gpt5\" is not one of gpt2, llama3, qwen2, o200k");
  expect_early("tokenizer.path=" + (folder / "raw/lines.jsonl"), "tokenizer.path");
  expect_early("tokenizer.train_bytes=-1", "tokenizer.train_bytes");
  expect_early("tokenizer.document_end=", "tokenizer.document_end");
  expect_early("input.text_key=", "input.text_key");
  expect_early("input.max_line_bytes=0", "input.max_line_bytes");
  expect_early("quality.gopher_quality.max_words=10",
               "quality.gopher_quality.max_words: 10 must be at least 50");
  expect_early("quality.gopher_repetition.max_top_2gram_chars=20",
               "quality.gopher_repetition.max_top_2gram_chars");
  expect_early("quality.c4.max_word_length=0", "quality.c4.max_word_length");
  expect_early("extract.max_depth=0", "extract.max_depth");
  EXPECT_EQ(read_report(folder / "none").error().code, ErrorCode::kNotFound);
  EXPECT_THROW(parse_config<DataConfig>("c.yaml", "dedup: {band: 3}"), UserError);
}

TEST(Prepare, OneAtATimeAndNothingIsLeftOfTheKilled) {
  TempFolder folder;
  make_raw(folder / "raw");
  ThreadPool pool(2);
  const PrepareRequest request{
      .inputs = {folder / "raw"}, .output = folder / "out", .config = small_config()};
  const std::vector<std::string> left = {"stages/clean.jsonl.tmp.4711.0", "report.json.tmp.4711.9",
                                         "shards/train/shard-00000.tokens.tmp.4711.3"};
  for (const std::string& name : left) write_file(folder / "out/" + name, "half").value();
  {
    const FileLock other = FileLock::take(folder / "out/stages/prepare.lock", Deadline::after_ms(0)).value();
    const auto refused = prepare(request, pool);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
    EXPECT_THAT(refused.error().message, HasSubstr("another `flywheel data` is writing to "));
    EXPECT_TRUE(path_exists(folder / "out/" + left[0])) << "the other's";
  }
  ASSERT_TRUE(prepare(request, pool).ok());
  for (const std::string& name : left) EXPECT_FALSE(path_exists(folder / "out/" + name)) << name;
  EXPECT_TRUE(prepare(request, pool).ok()) << "the lock was given back";
}

TEST(Prepare, NamesOfSources) {
  EXPECT_EQ(source_name("/usr/share/doc/postgresql-doc-15/html"), "postgresql-doc-15-html");
  EXPECT_EQ(source_name("/data/wiki dump/"), "wiki-dump");
  EXPECT_EQ(source_name("s3://bucket/corpus/2026?region=x"), "2026");
}

}  // namespace
}  // namespace flywheel::data
