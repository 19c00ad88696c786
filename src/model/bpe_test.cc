// Byte-level BPE beside its definition, on vocabularies and texts made at random.
#include "model/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/philox.h"

namespace flywheel::model {
namespace {

using ::testing::ElementsAre;

// Few characters, so that they meet again: of one to four bytes, with bytes in common.
std::string random_text(Philox& rng, uint64_t characters) {
  static const std::vector<std::string> kCharacters = {"a",  "b",  " ",  "é",  "д",    "ж",  "日",
                                                       "本", "語", "か", "な", "が",   "の", "は",
                                                       "한", "국", "न",  "म",  "🙂", "👩"};
  std::string text;
  for (uint64_t i = 0; i < characters; ++i) text += kCharacters[rng.below(kCharacters.size())];
  return text;
}

struct RandomVocabulary {
  std::vector<std::string> tokens;
  std::map<std::string, TokenId> ids;
  std::vector<BpeMerge> merges;
  std::map<std::pair<TokenId, TokenId>, std::pair<uint32_t, TokenId>> table;  // rank and result

  TokenId id(const std::string& text) {
    const auto [found, is_new] = ids.emplace(text, static_cast<TokenId>(tokens.size()));
    if (is_new) tokens.push_back(text);
    return found->second;
  }

  // Merges pairs that stand in a text: within characters, over their ends, and from the middle of one into
  // the next. With ranks in the order of making, as a trainer gives them, or in any.
  RandomVocabulary(Philox& rng, int count, bool in_order) {
    for (int byte = 0; byte < 256; ++byte) id(std::string(1, static_cast<char>(byte)));
    std::vector<uint32_t> ranks;
    for (int i = 0; i < count; ++i) ranks.push_back(static_cast<uint32_t>(i));
    for (size_t i = ranks.size(); !in_order && i > 1; --i) std::swap(ranks[i - 1], ranks[rng.below(i)]);
    std::vector<TokenId> symbols;
    for (const char c : random_text(rng, 400)) symbols.push_back(static_cast<unsigned char>(c));
    for (const uint32_t rank : ranks) {
      const size_t at = rng.below(symbols.size() - 1);
      const std::pair<TokenId, TokenId> pair{symbols[at], symbols[at + 1]};
      if (table.contains(pair)) continue;
      const TokenId result =
          id(tokens[static_cast<size_t>(pair.first)] + tokens[static_cast<size_t>(pair.second)]);
      merges.push_back({pair.first, pair.second, result, rank});
      table[pair] = {rank, result};
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        if (symbols[i] != pair.first || symbols[i + 1] != pair.second) continue;
        symbols[i] = result;
        symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
      }
    }
  }

  // Of all neighbours those of the lowest rank, the leftmost first, until none are a merge.
  std::vector<TokenId> by_definition(const std::string& text) const {
    std::vector<TokenId> symbols;
    for (const char c : text) symbols.push_back(static_cast<unsigned char>(c));
    for (;;) {
      size_t best = symbols.size();
      std::pair<uint32_t, TokenId> lowest{UINT32_MAX, kNoToken};
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        const auto found = table.find({symbols[i], symbols[i + 1]});
        if (found == table.end() || found->second.first >= lowest.first) continue;
        best = i;
        lowest = found->second;
      }
      if (best == symbols.size()) return symbols;
      symbols[best] = lowest.second;
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
  }
};

TEST(Bpe, GivesWhatItsDefinitionGives) {
  Philox rng(21);
  for (int round = 0; round < 60; ++round) {
    const RandomVocabulary random(rng, 20 + static_cast<int>(rng.below(150)), round % 3 != 0);
    const auto bpe = Bpe::create(Vocabulary(random.tokens), random.merges, {.byte_level = true}).value();
    for (int i = 0; i < 40; ++i) {
      // Now and then so long that a heap is used.
      std::string text = random_text(rng, 1 + rng.below(i % 8 == 0 ? 150 : 20));
      if (i % 4 == 0) text[rng.below(text.size())] = static_cast<char>(rng.below(256));  // no longer UTF-8
      std::vector<TokenId> ids;
      std::vector<uint32_t> ends;
      bpe->encode(text, ids, &ends);
      ASSERT_EQ(ids, random.by_definition(text)) << round << ": " << text;
      ASSERT_EQ(ends.size(), ids.size());
      size_t at = 0;
      for (size_t token = 0; token < ids.size(); ++token) {
        EXPECT_EQ(text.substr(at, ends[token] - at), random.tokens[static_cast<size_t>(ids[token])]);
        at = ends[token];
      }
      EXPECT_EQ(at, text.size());
    }
  }
}

TEST(BpeBoundaries, CutWhereNoTokenReachesOver) {
  const auto parts = [](const std::vector<std::string_view>& tokens, std::string_view text) {
    const BpeBoundaries boundaries(tokens);
    std::vector<std::string_view> cut;
    for (size_t at = 0, end = 0; at < text.size(); at = end) {
      end = boundaries.next(text, at);
      cut.push_back(text.substr(at, end - at));
    }
    return cut;
  };
  EXPECT_THAT(parts({}, "日本語"), ElementsAre("日", "本", "語"));
  EXPECT_THAT(parts({"日本"}, "日本語日"), ElementsAre("日本", "語", "日"));
  EXPECT_THAT(parts({"の日本の"}, "日本語"), ElementsAre("日本", "語"));
  EXPECT_THAT(parts({"\xA5本"}, "日本語"), ElementsAre("日本", "語"));      // 日 ends with A5
  EXPECT_THAT(parts({"本\xE8\xAA"}, "日本語"), ElementsAre("日", "本語"));  // 語 begins so
  EXPECT_THAT(parts({"\x97\xA5\xE6"}, "日本語"), ElementsAre("日本", "語"));
  EXPECT_THAT(parts({}, "a日 本éд"), ElementsAre("a日 本éд")) << "neighbours of three bytes alone";
  EXPECT_THAT(parts({}, "日\xE6\x9C日本"), ElementsAre("日\xE6\x9C日", "本")) << "half a character";
  EXPECT_THAT(parts({}, ""), ElementsAre());
}

}  // namespace
}  // namespace flywheel::model
