// The published tokenizations of well-known vocabularies: FLYWHEEL_TEST_DATA/tokenizers/golden.
#include <gtest/gtest.h>

#include <sstream>

#include "base/env.h"
#include "base/file.h"
#include "model/tokenizer.h"

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

INSTANTIATE_TEST_SUITE_P(Vocabularies, Golden,
                         testing::Values("gpt-2", "llama-spm", "phi-3", "deepseek-llm", "bert-bge"));

}  // namespace
}  // namespace flywheel::model
