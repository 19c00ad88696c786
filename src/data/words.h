// Words and lines of a text in any language.
//
// A word is what stands between spaces; in scripts that are written without them (Chinese, Japanese, Thai,
// Lao, Khmer, Burmese) each character is one. `letters` words are the lower-case runs of letters and digits
// inside, which is what near-duplicates are compared by.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace flywheel::data {

struct Word {
  std::string_view text;
  int32_t chars = 0;        // code points
  bool alphabetic = false;  // has at least one letter
  bool spaceless = false;   // a character of a script without spaces
};

void split_words(std::string_view text, std::vector<Word>& out);

// Lower-case words of letters and digits, as 64-bit hashes.
void hash_letter_words(std::string_view text, std::vector<uint64_t>& out);

// Lines without their ends, the empty ones too.
void split_lines(std::string_view text, std::vector<std::string_view>& out);

bool is_spaceless_script(char32_t c);

}  // namespace flywheel::data
