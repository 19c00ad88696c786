// What the rules of quality.h look at, computed once for a document.
#pragma once

#include <string_view>
#include <vector>

#include "data/quality.h"
#include "data/words.h"

namespace flywheel::data {

// The text outside of code.
struct Prose {
  std::vector<std::string_view> lines;  // empty ones too: they separate paragraphs
  std::vector<Word> words;
  int64_t all_words = 0;   // code included
  double latin_share = 0;  // of the words with letters
};
Prose read_prose(std::string_view text);

QualityVerdict judge_repetition(const Prose& prose, const GopherRepetitionConfig& config);

}  // namespace flywheel::data
