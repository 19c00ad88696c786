// Repairs and normalizes text: what was decoded with the wrong table, control characters, line ends, NFC.
//
// Mojibake is UTF-8 that somebody read as Windows-1252, Latin-1, Windows-1251 or Mac Roman ("cafÃ©",
// "itâ€™s", "РїСЂРёРІРµС‚"). It is undone where the characters, taken back to bytes, are a valid UTF-8
// sequence for a character in common use; a sequence that could be real text is left. Twice broken text is
// repaired twice.
//
// Threads: any. Errors: none; the input must be valid UTF-8 (data/charset.h).
//
//   UnicodeCounts counts;
//   std::string clean = clean_unicode(text, {}, counts);
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace flywheel::data {

struct UnicodeConfig {
  bool repair_mojibake = true;
  bool nfc = true;           // Unicode normalization form C
  bool plain_spaces = true;  // no-break and typographic spaces become spaces
  template <typename V>
  void fields(V& v) {
    v("repair_mojibake", repair_mojibake), v("nfc", nfc), v("plain_spaces", plain_spaces);
  }
};

struct UnicodeCounts {
  int64_t mojibake = 0;  // sequences repaired
  int64_t controls = 0;  // control and invisible characters removed
};

std::string clean_unicode(std::string_view utf8, const UnicodeConfig& config, UnicodeCounts& counts);

// Decodes the character at `i` of valid UTF-8 and moves past it.
inline char32_t next_code_point(std::string_view text, size_t& i) {
  const auto byte = [&](size_t at) { return static_cast<char32_t>(static_cast<uint8_t>(text[at])); };
  const char32_t c = byte(i++);
  if (c < 0x80) return c;
  if (c < 0xE0 && i < text.size()) return ((c & 0x1F) << 6) | (byte(i++) & 0x3F);
  if (c < 0xF0 && i + 1 < text.size()) {
    i += 2;
    return ((c & 0x0F) << 12) | ((byte(i - 2) & 0x3F) << 6) | (byte(i - 1) & 0x3F);
  }
  if (i + 2 < text.size()) {
    i += 3;
    return ((c & 0x07) << 18) | ((byte(i - 3) & 0x3F) << 12) | ((byte(i - 2) & 0x3F) << 6) |
           (byte(i - 1) & 0x3F);
  }
  i = text.size();
  return 0xFFFD;
}
void append_code_point(std::string& out, char32_t c);

}  // namespace flywheel::data
