#include "data/words.h"

#include <unicode/uchar.h>

#include "base/hash.h"
#include "data/unicode.h"

namespace flywheel::data {

bool is_spaceless_script(char32_t c) {
  if (c < 0xE00) return false;
  return (c <= 0xEFF) ||                                                  // Thai, Lao
         (c >= 0x1000 && c <= 0x109F) ||                                  // Burmese
         (c >= 0x1780 && c <= 0x17FF) ||                                  // Khmer
         (c >= 0x3040 && c <= 0x30FF) ||                                  // Hiragana, Katakana
         (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x4E00 && c <= 0x9FFF) ||  // Han
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x20000 && c <= 0x3FFFF);
}

void split_words(std::string_view text, std::vector<Word>& out) {
  out.clear();
  size_t begin = 0;
  Word word;
  const auto flush = [&](size_t end) {
    if (end > begin) {
      word.text = text.substr(begin, end - begin);
      out.push_back(word);
    }
    word = {};
  };
  for (size_t i = 0; i < text.size();) {
    const size_t at = i;
    const auto byte = static_cast<uint8_t>(text[i]);
    if (byte < 0x80) {
      ++i;
      if (byte == ' ' || byte == '\n' || byte == '\t') {
        flush(at);
        begin = i;
        continue;
      }
      ++word.chars;
      word.alphabetic |= (byte | 0x20) >= 'a' && (byte | 0x20) <= 'z';
      continue;
    }
    const char32_t c = next_code_point(text, i);
    if (is_spaceless_script(c)) {
      flush(at);
      begin = at;
      word = {.chars = 1, .alphabetic = u_isalpha(static_cast<UChar32>(c)) != 0, .spaceless = true};
      flush(i);
      begin = i;
    } else if (c == 0x3000 || u_isUWhiteSpace(static_cast<UChar32>(c))) {
      flush(at);
      begin = i;
    } else {
      ++word.chars;
      word.alphabetic = word.alphabetic || u_isalpha(static_cast<UChar32>(c)) != 0;
    }
  }
  flush(text.size());
}

void hash_letter_words(std::string_view text, std::vector<uint64_t>& out) {
  out.clear();
  std::string word;
  const auto flush = [&] {
    if (!word.empty()) out.push_back(xxh64(word));
    word.clear();
  };
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<uint8_t>(text[i]);
    if (byte < 0x80) {
      ++i;
      if ((byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9')) {
        word += static_cast<char>(byte);
      } else if (byte >= 'A' && byte <= 'Z') {
        word += static_cast<char>(byte | 0x20);
      } else {
        flush();
      }
      continue;
    }
    const char32_t c = next_code_point(text, i);
    if (is_spaceless_script(c)) {
      flush();
      append_code_point(word, c);
      flush();
    } else if (u_isalnum(static_cast<UChar32>(c)) || (c >= 0x300 && c <= 0x36F)) {
      append_code_point(word, static_cast<char32_t>(u_tolower(static_cast<UChar32>(c))));
    } else {
      flush();
    }
  }
  flush();
}

void split_lines(std::string_view text, std::vector<std::string_view>& out) {
  out.clear();
  while (!text.empty()) {
    const size_t end = text.find('\n');
    out.push_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
}

}  // namespace flywheel::data
