// The published tokenizations of well-known vocabularies: FLYWHEEL_TEST_DATA/tokenizers/golden.
#include <gtest/gtest.h>

#include <sstream>

#include "base/env.h"
#include "base/file.h"
#include "base/philox.h"
#include "model/gguf_writer_for_tests.h"
#include "model/tokenizer.h"
#include "model/tokenizer_gguf_internal.h"
#include "model/tokenizer_gguf_json.h"

namespace flywheel::model {
namespace {

std::vector<std::string> texts_of(const std::string& inp) {
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::vector<std::string> texts;
  for (size_t at = 0;;) {
    const size_t end = inp.find(separator, at);
    if (end == std::string::npos) break;
    texts.push_back(inp.substr(at, end - at));
    at = end + separator.size();
  }
  return texts;
}

std::vector<std::vector<TokenId>> ids_of(const std::string& out) {
  std::vector<std::vector<TokenId>> all;
  std::istringstream lines(out);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream numbers(line);
    all.emplace_back();
    for (TokenId id; numbers >> id;) all.back().push_back(id);
  }
  return all;
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, SameIds) {
  const std::string base = env::test_data() + "/tokenizers/golden/ggml-vocab-" + GetParam() + ".gguf";
  if (env::test_data().empty() || !path_exists(base)) GTEST_SKIP() << "no FLYWHEEL_TEST_DATA: " << base;
  const auto tokenizer = Tokenizer::load(base);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  const std::vector<std::string> texts = texts_of(read_file(base + ".inp").value());
  const auto expected = ids_of(read_file(base + ".out").value());
  ASSERT_EQ(texts.size(), expected.size());
  ASSERT_GT(texts.size(), 40u);
  const std::string name = GetParam();
  for (size_t i = 0; i < texts.size(); ++i) {
    const EncodeOptions options{.add_special = false, .parse_special = false};
    const Encoding encoding = tokenizer->encode_with_offsets(texts[i], options);
    EXPECT_EQ(encoding.ids, expected[i]) << "text " << i << ": " << texts[i];
    EXPECT_EQ(tokenizer->encode(texts[i], options), encoding.ids);
    ASSERT_EQ(encoding.offsets.size(), encoding.ids.size());
    if (name != "bert-bge") {
      EXPECT_EQ(tokenizer->decode(encoding.ids), texts[i]);
    }
    Detokenizer stream(*tokenizer, /*skip_special=*/false);
    std::string streamed;
    for (const TokenId id : encoding.ids) streamed += stream.push(id);
    streamed += stream.finish();
    EXPECT_EQ(streamed, tokenizer->decode(encoding.ids));
  }
}

// A vocabulary written as tokenizer.json is the same tokenizer.
TEST_P(Golden, SameIdsAsTokenizerJson) {
  const std::string name = GetParam();
  const std::string path = env::test_data() + "/tokenizers/golden/ggml-vocab-" + name + ".gguf";
  if (env::test_data().empty() || !path_exists(path)) GTEST_SKIP() << "no FLYWHEEL_TEST_DATA: " << path;
  const GgufFile file = GgufFile::open(path).value();
  const Result<std::string> json = tokenizer_json_of(file);
  if (name == "bert-bge") {
    EXPECT_EQ(json.error().code, ErrorCode::kInvalid);
    return;
  }
  ASSERT_TRUE(json.ok()) << json.error().message;
  const Tokenizer from_gguf = Tokenizer::from_gguf(file).value();
  const auto from_json = Tokenizer::from_json(json.value(), tokenizer_config_of(file).value());
  ASSERT_TRUE(from_json.ok()) << from_json.error().message;
  EXPECT_EQ(from_json->vocab_size(), from_gguf.vocab_size());
  EXPECT_EQ(from_json->bos(), from_gguf.bos());
  EXPECT_EQ(from_json->eos(), from_gguf.eos());
  std::vector<std::string> texts = texts_of(read_file(path + ".inp").value());
  Philox rng(17);
  static const char* const kParts[] = {
      "the ", " world",        "123",  "é",  "日本", "\n\n", "  ", "don't", "<s>",
      "</s>", "<|endoftext|>", "🙂", "\t", "ΑΒ",   "।",    ".",  "_x",    "\xE2\x96\x81"};
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (uint64_t n = rng.below(20); n-- > 0;) text += kParts[rng.below(std::size(kParts))];
    texts.push_back(text);
  }
  for (const std::string& text : texts) {
    for (const bool special : {false, true}) {
      const EncodeOptions options{.add_special = special, .parse_special = special};
      ASSERT_EQ(from_json->encode(text, options), from_gguf.encode(text, options)) << text;
    }
    const std::vector<TokenId> ids = from_gguf.encode(text);
    ASSERT_EQ(from_json->decode(ids), from_gguf.decode(ids));
  }
}

TEST(GgufPretokenizers, EveryNameLoadsAndAnUnknownOneIsSaid) {
  const auto file_with = [](const std::string& pre) {
    GgufWriterForTests w;
    w.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", pre);
    w.strings("tokenizer.ggml.tokens", {"a", "b", "ab", "\xC4\xA0"})
        .strings("tokenizer.ggml.merges", {"a b"});
    return w.finish();
  };
  for (const std::string& name : gguf_pretokenizer_names()) {
    const std::string bytes = file_with(name);
    const GgufFile file = GgufFile::parse(bytes, "vocab.gguf").value();
    const auto tokenizer = Tokenizer::from_gguf(file);
    ASSERT_TRUE(tokenizer.ok()) << name << ": " << tokenizer.error().message;
    EXPECT_EQ(tokenizer->encode("ab ab"), (std::vector<TokenId>{2, 3, 2})) << name;
    const auto json = Tokenizer::from_json(tokenizer_json_of(file).value());
    ASSERT_TRUE(json.ok()) << name << ": " << json.error().message;
    EXPECT_EQ(json->encode("ab ab"), (std::vector<TokenId>{2, 3, 2})) << name;
  }
  const std::string bytes = file_with("of-tomorrow");
  const auto unknown = Tokenizer::from_gguf(GgufFile::parse(bytes, "vocab.gguf").value());
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, ErrorCode::kInvalid);
  for (const char* said : {"vocab.gguf", "of-tomorrow", "tokenizer.json", "llama-bpe"}) {
    EXPECT_NE(unknown.error().message.find(said), std::string::npos) << unknown.error().message;
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, Golden,
                         testing::Values("gpt-2", "llama-spm", "phi-3", "deepseek-llm", "bert-bge"));

}  // namespace
}  // namespace flywheel::model
