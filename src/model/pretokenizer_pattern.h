// The splitting patterns of well-known tokenizers, written by hand: the same pieces as their regular
// expressions give, at many times the speed.
//
// Such a pattern consumes the whole text from left to right and never looks behind, so it is one function:
// where does the piece that begins at `at` end? The texts of the expressions are in the .cc file;
// tokenizers name a pattern by its text.
//
// Threads: pure functions. Errors: none; a text that is not UTF-8 is read as unicode.h says.
//
//   PatternFn next = find_pattern(kLlama3Pattern);   // nullptr: not known, use the regex engine
//   for (size_t at = 0; at < text.size();) { size_t end = next(text, at); use(at, end); at = end; }
#pragma once

#include <string_view>

namespace flywheel::model {

// The end of the piece that begins at `at`: at < text.size(), at < result <= text.size().
using PatternFn = size_t (*)(std::string_view text, size_t at);

// By the regular expression's text; nullptr if it is not one of the known ones.
PatternFn find_pattern(std::string_view regex);

extern const std::string_view kGpt2Pattern;    // GPT-2, and `use_regex` of ByteLevel
extern const std::string_view kLlama3Pattern;  // Llama 3: digits in threes
extern const std::string_view kQwen2Pattern;   // Qwen 2 to 3: digits one by one
extern const std::string_view kCl100kPattern;  // tiktoken cl100k_base
extern const std::string_view kO200kPattern;   // tiktoken o200k_base
extern const std::string_view kTekkenPattern;  // Mistral Nemo and later
// GPT-2's pattern after splitting off each digit (StarCoder, SmolLM): a pipeline of two steps in one pass.
PatternFn gpt2_pattern_with_single_digits();

}  // namespace flywheel::model
