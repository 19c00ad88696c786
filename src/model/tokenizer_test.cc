// Tokenizers on their own: training, streaming, offsets, special tokens, and files that are not what they
// say.
#include "model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/env.h"
#include "base/file.h"
#include "base/philox.h"
#include "model/bpe_trainer.h"
#include "model/unicode.h"

namespace flywheel::model {
namespace {

// Text with everything in it: words, digits, spaces, several scripts, emoji made of many characters.
std::string random_text(Philox& rng, int parts) {
  static const std::vector<std::string> kParts = {
      "hello",  " world", " the", "ing",    "  ",      "\n",
      "\r\n\t", "123",    "é",    "日本語", "かな",    " 👩‍👩‍👧",
      "don't",  "!!!",    "…",    "नमस्ते",   "e\u0301", " A"};
  std::string text;
  for (int i = 0; i < parts; ++i) text += kParts[rng.below(kParts.size())];
  return text;
}

std::string trained_json(int threads, bool one_by_one = false) {
  Philox rng(1, 2);
  std::vector<std::string> texts;
  for (int i = 0; i < 300; ++i) texts.push_back(random_text(rng, 40));
  BpeTrainer trainer({.vocab_size = 500, .special_tokens = {"<|end|>", "<|user|>"}});
  ThreadPool pool(threads);
  if (one_by_one) {
    for (auto text = texts.rbegin(); text != texts.rend(); ++text) trainer.add({&*text, 1}, pool);
  } else {
    trainer.add(texts, pool);
  }
  return trainer.train().value();
}

const Tokenizer& trained() {
  static const Tokenizer tokenizer = Tokenizer::from_json(trained_json(2)).value();
  return tokenizer;
}

TEST(BpeTrainer, DependsOnTheTextsAlone) {
  EXPECT_EQ(trained_json(1), trained_json(4));
  EXPECT_EQ(trained_json(1), trained_json(2, /*one_by_one=*/true));
  EXPECT_EQ(trained().vocab_size(), 500);
  EXPECT_FALSE(BpeTrainer({.vocab_size = 100}).train().ok());
}

TEST(Tokenizer, RoundTripsAnyBytes) {
  Philox rng(7);
  for (int round = 0; round < 200; ++round) {
    const std::string text = random_text(rng, static_cast<int>(rng.below(30)));
    EXPECT_EQ(trained().decode(trained().encode(text)), text);
    std::string bytes;
    for (uint64_t n = rng.below(40); n > 0; --n) bytes += static_cast<char>(rng.below(256));
    std::string joined;
    for (const TokenId id : trained().encode(bytes)) joined += trained().token_bytes(id);
    EXPECT_EQ(joined, bytes);
  }
}

TEST(Tokenizer, OffsetsCoverTheText) {
  Philox rng(8);
  for (int round = 0; round < 100; ++round) {
    const std::string text = random_text(rng, 20);
    const Encoding encoding = trained().encode_with_offsets(text);
    size_t at = 0;
    for (size_t i = 0; i < encoding.ids.size(); ++i) {
      EXPECT_EQ(encoding.offsets[i].begin, at);
      at = encoding.offsets[i].end;
      EXPECT_EQ(text.substr(encoding.offsets[i].begin, encoding.offsets[i].size()),
                trained().token_bytes(encoding.ids[i]));
    }
    EXPECT_EQ(at, text.size());
  }
}

TEST(Tokenizer, SpecialTokensAreTextForThosePlainlyAsked) {
  const std::string text = "a<|user|>b";
  const auto parsed = trained().encode(text), plain = trained().encode(text, {.parse_special = false});
  EXPECT_EQ(std::count(parsed.begin(), parsed.end(), *trained().token_id("<|user|>")), 1);
  EXPECT_TRUE(std::none_of(plain.begin(), plain.end(), [](TokenId id) { return trained().is_special(id); }));
  EXPECT_EQ(trained().decode(plain), text);
  EXPECT_EQ(trained().decode(parsed, /*skip_special=*/true), "ab");
}

TEST(Detokenizer, NeverEmitsHalfACharacter) {
  Philox rng(9);
  for (int round = 0; round < 300; ++round) {
    std::vector<TokenId> ids = trained().encode(random_text(rng, 10));
    if (round % 2 == 1) {  // any ids at all, so that characters break off everywhere
      for (TokenId& id : ids) id = static_cast<TokenId>(rng.below(500));
    }
    Detokenizer stream(trained(), /*skip_special=*/false);
    std::string joined;
    for (const TokenId id : ids) {
      const std::string piece = stream.push(id);
      EXPECT_TRUE(is_valid_utf8(piece));
      joined += piece;
    }
    joined += stream.finish();
    EXPECT_EQ(joined, trained().decode(ids));
  }
}

// Loads what may be no tokenizer at all; what loads must encode and decode.
bool survives(const Result<Tokenizer>& tokenizer) {
  if (!tokenizer.ok()) {
    EXPECT_FALSE(tokenizer.error().message.empty());
    return false;
  }
  const std::string text = "Hello <|user|> 日本 \xFF 12 don't";
  const Encoding encoding = tokenizer->encode_with_offsets(text);
  EXPECT_EQ(encoding.ids.size(), encoding.offsets.size());
  for (const ByteSpan& span : encoding.offsets) EXPECT_LE(span.end, text.size());
  EXPECT_TRUE(is_valid_utf8(tokenizer->decode(encoding.ids)));
  return true;
}

std::string mutated(std::string bytes, Philox& rng) {
  for (uint64_t n = 1 + rng.below(4); n > 0 && !bytes.empty(); --n) {
    const uint64_t at = rng.below(bytes.size());
    switch (rng.below(4)) {
      case 0:
        bytes[at] = static_cast<char>(rng.below(256));
        break;
      case 1:
        bytes.erase(at, 1 + rng.below(8));
        break;
      case 2:
        bytes.insert(at, bytes.substr(rng.below(bytes.size()), rng.below(64)));
        break;
      default:
        bytes.resize(bytes.size() - rng.below(std::min<uint64_t>(bytes.size(), 20)));
        break;
    }
  }
  return bytes;
}

// Replaces values anywhere in the JSON, so that most of what comes out is still JSON.
void mutate_json(Json& node, Philox& rng) {
  static const std::vector<Json> kValues = {
      nullptr, true,     -1,          1e300,         4'000'000'000, "",
      "x",     "BPE",    "Unigram",   "WordPiece",   "ByteLevel",   "Sequence",
      "NFD",   "(a+)+$", "Metaspace", Json::array(), Json::object()};
  if ((node.is_object() || node.is_array()) && !node.empty() && rng.below(8) != 0) {
    auto at = node.begin();
    std::advance(at, static_cast<std::ptrdiff_t>(rng.below(std::min<size_t>(node.size(), 16))));
    mutate_json(*at, rng);
  } else {
    node = kValues[rng.below(kValues.size())];
  }
}

TEST(TokenizerFuzz, TokenizerJson) {
  const std::string whole = trained_json(1);
  Json small = Json::parse(whole);
  // A second shape: what the first one's pipeline does not have.
  const Json other = Json::parse(
      R"({"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":5,"content":"Hel","lstrip":true,"rstrip":true,"normalized":true}],
      "normalizer":{"type":"Sequence","normalizers":[{"type":"NFKC"},{"type":"BertNormalizer"},{"type":"Replace","pattern":{"Regex":"a|o"},"content":"ee"},{"type":"Strip"},{"type":"Prepend","prepend":"_"}]},
      "pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Metaspace","prepend_scheme":"first"},{"type":"Digits"},{"type":"Punctuation"},{"type":"Split","pattern":{"String":"l"},"behavior":"MergedWithNext"}]},
      "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<unk>"}},{"Sequence":{"id":"A"}}],"special_tokens":{"<unk>":{"ids":[0]}}},
      "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1}]},
      "model":{"type":"Unigram","unk_id":0,"byte_fallback":true,"vocab":[["<unk>",0],["l",-2.5],["he",-1],["▁",-3],["o",-2]]}})");
  ASSERT_TRUE(survives(Tokenizer::from_json(other.dump())));
  Philox rng(10);
  int loaded = 0;
  for (int round = 0; round < 600; ++round) {
    Json json = round % 2 ? other : small;
    mutate_json(json, rng);
    if (round % 3 == 0) mutate_json(json, rng);
    loaded += survives(Tokenizer::from_json(json.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }
  for (int round = 0; round < 200; ++round) survives(Tokenizer::from_json(mutated(whole, rng)));
  EXPECT_GT(loaded, 20);
}

TEST(TokenizerFuzz, SentencePiece) {
  const auto field = [](int number, std::string_view bytes) {
    return std::string(1, static_cast<char>(number << 3 | 2)) + static_cast<char>(bytes.size()) +
           std::string(bytes);
  };
  std::string model;
  for (const char* piece : {"<unk>", "▁", "h", "e", "l", "he", "ll", "o", "▁he"}) {
    const std::string score("\x15\x00\x00\x80\xBF", 5);  // -1
    model += field(1, field(1, piece) + score + (std::string_view(piece) == "<unk>" ? "\x18\x02" : ""));
  }
  Philox rng(11);
  int loaded = 0;
  for (const char* type : {"\x18\x01", "\x18\x02"}) {
    const std::string whole = model + field(2, type);
    ASSERT_TRUE(survives(Tokenizer::from_sentencepiece(whole)));
    for (int round = 0; round < 2000; ++round)
      loaded += survives(Tokenizer::from_sentencepiece(mutated(whole, rng)));
  }
  EXPECT_GT(loaded, 100);
}

TEST(TokenizerFuzz, Tiktoken) {
  std::string ranks;
  for (int i = 0; i < 64; ++i)
    ranks += std::string("Q") + static_cast<char>('A' + i % 26) + "== " + std::to_string(i) + "\n";
  Philox rng(12);
  for (int round = 0; round < 1000; ++round)
    survives(Tokenizer::from_tiktoken(mutated(ranks, rng), "cl100k_base"));
}

}  // namespace
}  // namespace flywheel::model
