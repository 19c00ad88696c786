// Files that changed after they were written: none is reused, none is stored, none is given out by the store.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "base/slowness_for_tests.h"
#include "data/gzip_for_test.h"
#include "data/prepare_for_test.h"
#include "data/record_internal.h"
#include "data/shards.h"

namespace flywheel::data {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class PrepareDamage : public testing::Test {
 protected:
  PrepareDamage() {
    make_raw(folder_ / "raw");
    request_ = {.inputs = {folder_ / "raw"}, .output = folder_ / "out", .config = small_config()};
    request_.config.shards.shard_tokens = 8000;  // several shards
  }

  std::string out(const std::string& file) const { return folder_ / "out/" + file; }
  Result<PrepareReport> run() { return prepare(request_, pool_); }

  // Flips one bit in the middle of a file; its size stays.
  static void damage(const std::string& path) {
    std::string bytes = read_file(path).value();
    ASSERT_FALSE(bytes.empty()) << path;
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
    std::error_code ignored;
    fs::permissions(path, fs::perms::owner_all, ignored);
    write_file(path, bytes).value();
  }

  // Every file of the output folder whose bytes are a function of inputs and config.
  std::map<std::string, std::string> contents() const {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(out(""))) {
      const std::string name = entry.path().lexically_relative(out("")).generic_string();
      if (!entry.is_regular_file() || name.starts_with("report.") || name == "stages/prepare.lock") continue;
      if (name.starts_with("stages/") && name.ends_with(".json")) continue;  // how long each took
      files[name] = read_file(entry.path().string()).value();
    }
    return files;
  }

  TempFolder folder_;
  ThreadPool pool_{2};
  PrepareRequest request_;
};

// 4 MB that unpack to 2.5 GB, beside sound files, in a process that may take less.
TEST_F(PrepareDamage, AFileThatUnpacksToMoreThanMemoryIsQuarantinedAlone) {
  if (kSlowness > 1) GTEST_SKIP() << "a sanitizer needs the address space";
  const std::string part = gzip([] {
    std::string text;
    while (text.size() < 1'000'000) text += "some words again ";
    return text;
  }());
  std::string packed;
  for (int i = 0; i < 2500; ++i) packed += part;
  write_file(folder_ / "raw/bomb.txt.gz", packed).value();
  request_.config.input.max_file_bytes = int64_t{1} << 40;  // asked for, so no bound of ours helps
  request_.config.parquet = false;
  const uint64_t pages = std::stoull(read_file("/proc/self/statm").value());
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  const struct rlimit tight {
    pages* static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)) + (uint64_t{768} << 20), before.rlim_max
  };
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &tight), 0);
  const Result<PrepareReport> report = run();
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &before), 0);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_GT(report->stages.at(0).documents_out, 90);
  const std::string quarantined = read_file(out("quarantined.jsonl")).value();
  EXPECT_THAT(quarantined, HasSubstr("bomb.txt.gz"));
  EXPECT_THAT(quarantined, HasSubstr("too little memory to read it"));
}

TEST_F(PrepareDamage, AChangedByteInAnyFileOfAStageMakesThatStageRunAgain) {
  ASSERT_TRUE(run().ok());
  const auto sound = contents();
  const std::vector<std::string> stages = {"extract", "clean", "dedup", "tokenizer", "shards"};
  int damaged = 0;
  bool second_shard = false;
  for (size_t s = 0; s < stages.size(); ++s) {
    const OrderedJson record =
        parse_ordered_json(read_file(out("stages/" + stages[s] + ".json")).value()).value();
    for (const auto& [name, sum] : record.at("outputs").items()) {
      if (sum.at("bytes") == 0) continue;
      damage(out(name));
      const std::vector<bool> got = reused(run().value());
      for (size_t other = 0; other < stages.size(); ++other)
        EXPECT_EQ(got[other], other != s) << name << " damaged, stage " << stages[other];
      ASSERT_TRUE(contents() == sound) << name;
      second_shard = second_shard || name == "shards/train/shard-00001.tokens";
      ++damaged;
    }
  }
  EXPECT_GE(damaged, 12);
  EXPECT_TRUE(second_shard);
  // Cut, gone, or a record that is damaged itself or of an older version.
  const auto expect_shards_again = [&](const std::string& how) {
    EXPECT_THAT(reused(run().value()), ElementsAre(true, true, true, true, false)) << how;
    EXPECT_TRUE(contents() == sound) << how;
    EXPECT_THAT(reused(run().value()), ElementsAre(true, true, true, true, true)) << how;
  };
  write_file(out("shards/train/shard-00000.tokens"), "F").value();
  expect_shards_again("cut to a byte");
  remove_all(out("shards/validation/shard-00000.tokens")).value();
  expect_shards_again("removed");
  damage(out("stages/shards.json"));
  expect_shards_again("record damaged");
  std::string record = read_file(out("stages/shards.json")).value();
  const size_t count = record.find("\"documents_out\": ");
  ASSERT_NE(count, std::string::npos);
  record.insert(count + 17, "1");  // still JSON, but it would report another number
  write_file(out("stages/shards.json"), record).value();
  expect_shards_again("a number in the record changed");
  OrderedJson old = parse_ordered_json(read_file(out("stages/shards.json")).value()).value();
  old.erase("version"), old.erase("crc32c");
  for (auto& [name, sum] : old.at("outputs").items()) sum = OrderedJson(sum.at("bytes"));
  write_file(out("stages/shards.json"), old.dump(1)).value();
  expect_shards_again("a record of version 1");
}

TEST_F(PrepareDamage, DamagedShardsAreNotStored) {
  PrepareReport report = run().value();
  damage(out("shards/train/shard-00001.tokens"));
  store::Store store = store::Store::open(folder_ / "home").value();
  request_.store = &store;
  {
    // Shards that the disk did not keep as they were written: the stage has just run.
    store::Run failed = store.create_run({.name = "small", .kind = "data"}).value();
    const Result<void> refused = record_artifacts(request_, {}, std::string(64, 'a'), failed, report);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(refused.error().message, HasSubstr("shards/train/shard-00001.tokens: block "));
    EXPECT_TRUE(store.list_artifacts({})->empty());
    ASSERT_TRUE(failed.finish(store::RunStatus::kFailed).ok());
  }
  write_file(out("shards/train/notes.txt"), "no file of the dataset").value();
  EXPECT_EQ(run()->artifacts.at("dataset"), "small:1");
  const store::Artifact stored = store.resolve("small").value();
  const std::string files = store.path_of(stored, store::Store::Verify::kYes).value();
  for (const char* split : {"train", "validation"}) {
    const TokenShards shards = TokenShards::open(files + "/shards/" + split).value();
    EXPECT_TRUE(shards.verify().ok()) << split;
    EXPECT_GT(shards.num_tokens(), 0) << split;
  }
  EXPECT_FALSE(path_exists(files + "/shards/train/notes.txt"));
}

TEST_F(PrepareDamage, WhatTheStoreHasFromEarlierIsGivenOutOnlyWhileItIsSound) {
  store::Store store = store::Store::open(folder_ / "home").value();
  request_.store = &store;
  ASSERT_EQ(run()->artifacts.at("dataset"), "small:1");
  const auto expect_refused = [&](const std::string& command) {
    const Result<PrepareReport> refused = run();
    ASSERT_FALSE(refused.ok()) << command;
    EXPECT_EQ(refused.error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(refused.error().message, HasSubstr("`flywheel store remove " + command + "`"));
  };
  // A file in the store that is not what was stored: of the dataset, of its tokenizer.
  const auto blob_of = [&](const std::string& ref, const std::string& path) {
    const store::Artifact artifact = store.resolve(ref).value();
    for (const store::ArtifactFile& file : artifact.files) {
      if (file.path == path) return store.home() + "/blobs/" + file.sha256.substr(0, 2) + "/" + file.sha256;
    }
    return std::string();
  };
  damage(blob_of("small", "documents.jsonl"));
  expect_refused("small:1");
  ASSERT_TRUE(store.remove_artifact("small:1").ok());
  EXPECT_EQ(run()->artifacts.at("dataset"), "small:2");
  EXPECT_TRUE(store.verify()->problems.empty());
  damage(blob_of("small-tokenizer", "tokenizer.json"));
  expect_refused("small-tokenizer:1");
  ASSERT_TRUE(store.remove_artifact("small-tokenizer:1").ok());
  EXPECT_EQ(run()->artifacts.at("dataset"), "small:3");
  EXPECT_TRUE(store.verify()->problems.empty());

  // Stored exactly as it lay there, but damaged already.
  ASSERT_TRUE(store.remove_artifact("small:3").ok());
  make_folders(folder_ / "bad").value();
  fs::copy(out("shards"), folder_ / "bad/shards", fs::copy_options::recursive);
  damage(folder_ / "bad/shards/train/shard-00000.tokens");
  const OrderedJson record = parse_ordered_json(read_file(out("stages/shards.json")).value()).value();
  const std::string once = "dataset/" + record.at("key").get<std::string>() + "/small/small-tokenizer:2";
  ASSERT_EQ(
      store.put_artifact({.kind = "dataset", .name = "small", .path = folder_ / "bad", .once = once})->ref(),
      "small:4");
  EXPECT_TRUE(store.verify()->problems.empty()) << "the store cannot know";
  expect_refused("small:4");
  ASSERT_TRUE(store.remove_artifact("small:4").ok());
  EXPECT_EQ(run()->artifacts.at("dataset"), "small:5");
  EXPECT_EQ(run()->artifacts.at("dataset"), "small:5");
}

}  // namespace
}  // namespace flywheel::data
