#include "data/shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "base/philox.h"

namespace flywheel::data {
namespace {

struct Made {
  std::vector<int32_t> tokens, documents;
};

Made make_set(const std::string& folder, int64_t vocab_size, int documents, int64_t shard_tokens,
              uint64_t seed) {
  Philox rng(seed);
  Made made;
  auto writer = ShardWriter::create(folder, {.vocab_size = vocab_size, .shard_tokens = shard_tokens}).value();
  for (int d = 0; d < documents; ++d) {
    std::vector<int32_t> ids(1 + rng.below(900));
    for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab_size)));
    writer.add(ids).value();
    made.tokens.insert(made.tokens.end(), ids.begin(), ids.end());
    made.documents.insert(made.documents.end(), ids.size(), d);
  }
  const ShardManifest manifest = writer.seal().value();
  EXPECT_EQ(manifest.tokens, static_cast<int64_t>(made.tokens.size()));
  EXPECT_EQ(manifest.documents, documents);
  return made;
}

TEST(Shards, ReadBackEveryTokenInBothWidthsAndOverShards) {
  for (const int64_t vocab : {int64_t{512}, int64_t{65536}, int64_t{65537}, int64_t{150000}}) {
    TempFolder folder;
    const Made made = make_set(folder.path(), vocab, 500, 7000, static_cast<uint64_t>(vocab));
    const TokenShards shards = TokenShards::open(folder.path()).value();
    EXPECT_GT(shards.manifest().shards.size(), 5u);
    EXPECT_EQ(shards.manifest().token_bytes, vocab <= 65536 ? 2 : 4);
    std::vector<int32_t> tokens(made.tokens.size()), documents(made.tokens.size());
    shards.read(0, tokens).value();
    shards.read_documents(0, documents).value();
    EXPECT_EQ(tokens, made.tokens);
    EXPECT_EQ(documents, made.documents);
    shards.verify().value();
  }
}

TEST(Shards, BatchIsTheSameForAnyWorldAndEachEpochSeesEachSampleOnce) {
  TempFolder folder;
  const Made made = make_set(folder.path(), 1000, 300, 50000, 3);
  const TokenShards shards = TokenShards::open(folder.path()).value();
  const Sampler sampler(shards, {.seed = 7, .batch = 12, .length = 33});
  for (const int64_t step : {0, 1, 400, 100000}) {
    const Batch whole = sampler.batch(step).value();
    for (int64_t i = 0; i < whole.sequences; ++i) {
      const int64_t first = whole.samples[static_cast<size_t>(i)] * 33;
      for (int64_t t = 0; t <= 33; ++t) {
        ASSERT_EQ(whole.tokens[static_cast<size_t>(i * 34 + t)], made.tokens[static_cast<size_t>(first + t)]);
      }
      EXPECT_EQ(whole.inputs(i)[1], whole.targets(i)[0]);
    }
    for (const int64_t world : {1, 2, 3, 5, 12, 13}) {
      std::vector<int32_t> joined;
      for (int64_t rank = 0; rank < world; ++rank) {
        const Batch part = sampler.batch(step, rank, world).value();
        joined.insert(joined.end(), part.tokens.begin(), part.tokens.end());
      }
      EXPECT_EQ(joined, whole.tokens) << "step " << step << " world " << world;
    }
  }
  const int64_t n = sampler.samples_per_epoch();
  std::vector<std::vector<int64_t>> order(2);
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    std::set<int64_t> seen;
    for (int64_t i = 0; i < n; ++i) {
      order[static_cast<size_t>(epoch)].push_back(sampler.sample_at(epoch * n + i));
      seen.insert(order[static_cast<size_t>(epoch)].back());
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), n);
    EXPECT_EQ(*seen.rbegin(), n - 1);
  }
  EXPECT_NE(order[0], order[1]);
  const Sampler other(shards, {.seed = 8, .batch = 12, .length = 33});
  EXPECT_NE(other.batch(0)->samples, sampler.batch(0)->samples);
}

TEST(Shards, WithoutManifestThereIsNoDataset) {
  TempFolder folder;
  auto writer = ShardWriter::create(folder.path(), {.vocab_size = 10, .shard_tokens = 4}).value();
  writer.add(std::vector<int32_t>{1, 2, 3, 4, 5}).value();
  EXPECT_EQ(TokenShards::open(folder.path()).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(writer.add(std::vector<int32_t>{10}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(writer.add(std::vector<int32_t>{-1}).error().code, ErrorCode::kInvalid);
  writer.seal().value();
  const TokenShards shards = TokenShards::open(folder.path()).value();
  EXPECT_EQ(shards.num_tokens(), 5);
  EXPECT_THROW(Sampler(shards, {.length = 5}), UserError);
  std::vector<int32_t> out(3);
  EXPECT_EQ(shards.read(3, out).error().code, ErrorCode::kInvalid);
}

TEST(Shards, EveryFlippedByteIsNoticed) {
  TempFolder folder;
  make_set(folder.path(), 700, 20, 1 << 20, 5);
  const std::string path = folder / "shard-00000.tokens";
  const std::string good = read_file(path).value();
  std::vector<size_t> places = {0, 9, 12, 17, 30, 77, 4096, 4097, good.size() - 1, good.size() - 9};
  Philox rng(11);
  for (int i = 0; i < 40; ++i) places.push_back(4096 + rng.below(good.size() - 4096));
  for (const size_t place : places) {
    std::string bad = good;
    bad[place] = static_cast<char>(bad[place] ^ 0x10);
    write_file(path, bad).value();
    Result<TokenShards> shards = TokenShards::open(folder.path());
    const bool noticed = !shards.ok() || !shards->verify().ok();
    // The pad bytes between ids and tables are outside every checksum and mean nothing.
    if (!noticed) {
      std::vector<int32_t> ids(static_cast<size_t>(shards->num_tokens()));
      EXPECT_GE(place, 4096 + ids.size() * 2) << "byte " << place;
      EXPECT_LT(place, 4096 + ids.size() * 2 + 8) << "byte " << place;
    }
  }
  for (const size_t length : {size_t{0}, size_t{79}, size_t{4096}, good.size() / 2, good.size() - 1}) {
    write_file(path, good.substr(0, length)).value();
    EXPECT_EQ(TokenShards::open(folder.path()).error().code, ErrorCode::kCorrupt) << length;
  }
  write_file(path, good).value();
  std::string manifest = read_file(folder / "manifest.json").value();
  manifest.replace(manifest.find("700"), 3, "701");
  write_file(folder / "manifest.json", manifest).value();
  EXPECT_THAT(TokenShards::open(folder.path()).error().message, testing::HasSubstr("checksum"));
}

}  // namespace
}  // namespace flywheel::data
