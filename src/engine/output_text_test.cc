#include "engine/output_text.h"

#include <gtest/gtest.h>

namespace flywheel::engine {
namespace {

// Each byte is a token; the space is a character like any other.
model::Tokenizer byte_tokenizer() {
  Json vocabulary = Json::object();
  Json json = {
      {"version", "1.0"},
      {"added_tokens", Json::array()},
      {"decoder",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}}},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}}}};
  // GPT-2's names for bytes: printable ones stand for themselves, the others for U+0100 and up.
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const int code = printable ? byte : next++;
    std::string name;
    if (code < 0x80) {
      name = std::string(1, static_cast<char>(code));
    } else {
      name = {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
    }
    vocabulary[name] = byte;
  }
  json["model"] = {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}};
  return model::Tokenizer::from_json(json.dump()).value();
}

// What comes out after each byte, joined by '|', then the end.
std::string stream(const std::string& bytes, std::vector<std::string> stop,
                   StopInOutput keep = StopInOutput::kDrop) {
  const model::Tokenizer tokenizer = byte_tokenizer();
  OutputText output(&tokenizer, std::move(stop), keep);
  std::string log;
  size_t tokens = 0;
  for (const char byte : bytes) {
    const OutputText::Piece piece = output.push({.id = static_cast<uint8_t>(byte)});
    tokens += piece.tokens.size();
    log += piece.text + "|";
    if (piece.stopped)
      return log + " stopped by " + piece.stop_match + ", " + std::to_string(tokens) + " tokens";
  }
  const OutputText::Piece piece = output.finish();
  return log + piece.text + " and " + std::to_string(tokens) + "+" + std::to_string(piece.tokens.size()) +
         " tokens";
}

TEST(OutputText, GivesOutEveryCharacterAtOnce) {
  EXPECT_EQ(stream("abc", {}), "a|b|c| and 3+0 tokens");
}

TEST(OutputText, HoldsBackWhatCouldBeAStop) {
  EXPECT_EQ(stream("ab\n\nc", {"\n\n"}), "a|b||| stopped by \n\n, 4 tokens");
  EXPECT_EQ(stream("ab\ncd", {"\n\n"}), "a|b||\nc|d| and 5+0 tokens");
  EXPECT_EQ(stream("a\n", {"\n\n"}), "a||\n and 1+1 tokens");
}

TEST(OutputText, TheFirstOfSeveralStopsCounts) {
  EXPECT_EQ(stream("xaab", {"aab", "ab"}), "x|||| stopped by aab, 4 tokens");
  EXPECT_EQ(stream("xab", {"aab", "ab"}), "x||| stopped by ab, 3 tokens");
  EXPECT_EQ(stream("aaab", {"aab"}), "||a|| stopped by aab, 4 tokens");
}

TEST(OutputText, KeepsTheStopWhereAsked) {
  EXPECT_EQ(stream("ab.", {"."}, StopInOutput::kKeep), "a|b|.| stopped by ., 3 tokens");
}

TEST(OutputText, NeverHalfACharacter) {
  EXPECT_EQ(stream("a\xC3\xA9", {}), "a||\xC3\xA9| and 3+0 tokens");
  EXPECT_EQ(stream("\xE2\x82", {}), "||\xEF\xBF\xBD and 2+0 tokens");
}

TEST(OutputText, WithoutATokenizerTokensPassThrough) {
  OutputText output(nullptr, {}, StopInOutput::kDrop);
  EXPECT_EQ(output.push({.id = 5}).tokens.size(), 1u);
  EXPECT_EQ(output.push_silent({.id = 6}).tokens.size(), 1u);
}

}  // namespace
}  // namespace flywheel::engine
