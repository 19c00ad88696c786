// Log-probabilities as /v1/completions writes them: tokens by name, and where each begins in the text.
#include "serve/openai_response.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/philox.h"
#include "engine/output_text.h"
#include "model/unicode.h"

namespace flywheel::serve {
namespace {

// Tokens of one byte each, with its value as id, and <|endoftext|>.
model::Tokenizer bytes_tokenizer() {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string ranks;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    ranks += {kDigits[byte >> 2], kDigits[(byte & 3) << 4], '=', '=', ' '};
    ranks += std::to_string(byte) + "\n";
  }
  return model::Tokenizer::from_tiktoken(ranks, "r50k_base").value();
}

constexpr model::TokenId kEndOfText = 50256;

const CallInfo kCall = {.api = Api::kCompletions, .logprobs = true, .top_logprobs = 3};

std::vector<engine::GeneratedToken> tokens_of(std::string_view bytes) {
  std::vector<engine::GeneratedToken> tokens;
  for (const char byte : bytes) tokens.push_back({static_cast<uint8_t>(byte), -1, {}});
  return tokens;
}

// Whole, from all tokens at once.
OrderedJson whole(const std::vector<engine::GeneratedToken>& tokens, const model::Tokenizer& tokenizer) {
  return response_json(kCall, {{"", tokens, "stop"}}, {}, tokenizer)["choices"][0]["logprobs"];
}

// Streamed, chunks as the engine cuts them; what each list of `logprobs` holds, joined.
OrderedJson streamed(const std::vector<engine::GeneratedToken>& tokens, const model::Tokenizer& tokenizer,
                     std::string* text = nullptr) {
  engine::OutputText output(&tokenizer, {}, engine::StopInOutput::kDrop);
  TextOffset offset(tokenizer);
  OrderedJson joined;
  const auto take = [&](engine::OutputText::Piece piece) {
    if (text != nullptr) *text += piece.text;
    const Choice choice{piece.text, std::move(piece.tokens), ""};
    const OrderedJson logprobs =
        chunk_json(kCall, 0, choice, false, offset, tokenizer)["choices"][0]["logprobs"];
    for (const auto& [name, list] : logprobs.items()) {
      for (const auto& value : list) joined[name].push_back(value);
    }
  };
  for (const auto& token : tokens) take(output.push(token));
  take(output.finish());
  return joined;
}

TEST(CompletionLogprobs, OffsetsCountCharacters) {
  const model::Tokenizer tokenizer = bytes_tokenizer();
  const auto tokens = tokens_of("aé日b");
  const OrderedJson got = whole(tokens, tokenizer);
  EXPECT_EQ(got["text_offset"].dump(), "[0,1,1,2,2,2,3]");
  EXPECT_EQ(got["tokens"], OrderedJson({"a", R"(bytes:\xc3)", R"(bytes:\xa9)", R"(bytes:\xe6)",
                                        R"(bytes:\x97)", R"(bytes:\xa5)", "b"}));
  EXPECT_EQ(streamed(tokens, tokenizer), got);
}

TEST(CompletionLogprobs, OffsetsKeepStepWithIllFormedTextAndSpecialTokens) {
  const model::Tokenizer tokenizer = bytes_tokenizer();
  auto tokens = tokens_of(
      "\xe6"
      "a\x97"
      "b");                                // the text is "\uFFFDa\uFFFDb"
  tokens.push_back({kEndOfText, -1, {}});  // which is no text
  tokens.push_back({'c', -1, {}});
  EXPECT_EQ(whole(tokens, tokenizer)["text_offset"].dump(), "[0,1,2,3,4,4]");
}

// Of an echoed prompt the first token has nothing before it, and so no log-probability.
TEST(CompletionLogprobs, AnEchoedPromptBeginsWithoutALogprob) {
  const model::Tokenizer tokenizer = bytes_tokenizer();
  Choice choice{"ab", tokens_of("ab"), "length"};
  choice.from_beginning = true;
  const OrderedJson got = response_json(kCall, {choice}, {}, tokenizer)["choices"][0]["logprobs"];
  EXPECT_EQ(got["token_logprobs"].dump(), "[null,-1.0]");
  EXPECT_EQ(got["top_logprobs"].dump(), "[null,{}]");
  EXPECT_EQ(got["text_offset"].dump(), "[0,1]");
  EXPECT_EQ(got["tokens"].dump(), R"(["a","b"])");
}

TEST(CompletionLogprobs, PartsOfCharactersStayDifferentKeys) {
  const model::Tokenizer tokenizer = bytes_tokenizer();
  const engine::GeneratedToken token{0xe3, -1, {{0xe3, -1}, {0xe4, -2}, {0xe5, -3}}};
  const OrderedJson top = whole({token}, tokenizer)["top_logprobs"][0];
  EXPECT_EQ(top.dump(), R"({"bytes:\\xe3":-1.0,"bytes:\\xe4":-2.0,"bytes:\\xe5":-3.0})");
}

// Any bytes: streamed as whole; every token stands at the character that its first byte is in.
TEST(CompletionLogprobs, StreamedAndWholeAgree) {
  const model::Tokenizer tokenizer = bytes_tokenizer();
  Philox rng(4);
  for (int round = 0; round < 300; ++round) {
    std::string bytes;
    static const std::vector<std::string> kParts = {"a",  " ",    "é",    "日本",    "👩‍👧",
                                                    "\n", "\xe6", "\x80", "\xf0\x9f"};
    for (int i = 0; i < 12; ++i) bytes += kParts[rng.below(round % 2 == 0 ? 6 : kParts.size())];
    const auto tokens = tokens_of(bytes);
    std::string text;
    const OrderedJson got = whole(tokens, tokenizer);
    EXPECT_EQ(streamed(tokens, tokenizer, &text), got);
    EXPECT_EQ(text, model::repair_utf8(bytes));
    if (round % 2 != 0) continue;  // below: of well-formed text
    for (size_t i = 0; i < bytes.size(); ++i) {
      size_t begun = 0;
      for (size_t before = 0; before <= i; ++before)
        begun += (static_cast<uint8_t>(bytes[before]) & 0xc0) != 0x80;
      ASSERT_EQ(got["text_offset"][i], begun - 1) << bytes << " at byte " << i;
    }
  }
}

}  // namespace
}  // namespace flywheel::serve
