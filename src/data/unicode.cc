#include "data/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/ucnv.h>

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

namespace flywheel::data {
namespace {

enum Table { kWindows1252, kMacRoman, kWindows1251, kTables };

// What byte each character was before a table made it a character.
class ByteTables {
 public:
  ByteTables() {
    load(kWindows1252, "windows-1252");
    load(kMacRoman, "macintosh");
    load(kWindows1251, "windows-1251");
    // Latin-1 leaves 0x80..0x9F as control characters, and so does Windows-1252 where it has nothing.
    for (char32_t c = 0x80; c < 0xA0; ++c) bytes_[kWindows1252].try_emplace(c, static_cast<uint8_t>(c));
  }
  int byte_of(Table table, char32_t c) const {
    const auto it = bytes_[table].find(c);
    return it == bytes_[table].end() ? -1 : it->second;
  }

 private:
  void load(Table table, const char* name) {
    UErrorCode status = U_ZERO_ERROR;
    std::unique_ptr<UConverter, decltype(&ucnv_close)> converter(ucnv_open(name, &status), &ucnv_close);
    if (U_FAILURE(status)) return;
    for (int byte = 0x80; byte < 0x100; ++byte) {
      const char in = static_cast<char>(byte);
      const char* source = &in;
      status = U_ZERO_ERROR;
      const UChar32 c = ucnv_getNextUChar(converter.get(), &source, source + 1, &status);
      if (U_SUCCESS(status) && c >= 0x80 && c != 0xFFFD)
        bytes_[table][static_cast<char32_t>(c)] = static_cast<uint8_t>(byte);
    }
  }
  std::array<std::unordered_map<char32_t, uint8_t>, kTables> bytes_;
};

const ByteTables& byte_tables() {
  static const ByteTables tables;
  return tables;
}

// Characters that people write, as against what arbitrary bytes happen to spell.
bool in_common_use(char32_t c) {
  struct Range {
    char32_t first, last;
  };
  static constexpr Range kRanges[] = {
      {0x80, 0x17F},    {0x192, 0x192},   {0x218, 0x21B},    {0x386, 0x3CE},   {0x401, 0x45F},
      {0x490, 0x491},   {0x5D0, 0x5EA},   {0x60C, 0x60C},    {0x61B, 0x61F},   {0x621, 0x652},
      {0x660, 0x669},   {0x67E, 0x6D3},   {0x905, 0x97F},    {0x985, 0x9FA},   {0xE01, 0xE5B},
      {0x1E00, 0x1EF9}, {0x2010, 0x2044}, {0x20A0, 0x20BF},  {0x2100, 0x214F}, {0x2190, 0x22FF},
      {0x2500, 0x27BF}, {0x3000, 0x30FF}, {0x4E00, 0x9FFF},  {0xAC00, 0xD7A3}, {0xFEFF, 0xFEFF},
      {0xFF01, 0xFF9F}, {0xFFFD, 0xFFFD}, {0x1F300, 0x1FAFF}};
  return std::any_of(std::begin(kRanges), std::end(kRanges),
                     [&](const Range& range) { return c >= range.first && c <= range.last; });
}

// The character that the code points at `at` spell in UTF-8 when `table` takes them back to bytes; 0 if none.
char32_t misread(const std::vector<char32_t>& text, size_t at, Table table, size_t& length) {
  const ByteTables& tables = byte_tables();
  const int lead = tables.byte_of(table, text[at]);
  if (lead < 0xC2 || lead > 0xF4) return 0;
  length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (at + length > text.size()) return 0;
  char32_t c = static_cast<char32_t>(lead) & (0xFFu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    const int byte = tables.byte_of(table, text[at + i]);
    if (byte < 0x80 || byte > 0xBF) return 0;
    c = (c << 6) | (static_cast<char32_t>(byte) & 0x3F);
  }
  static constexpr char32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  return c >= kLeast[length] && in_common_use(c) ? c : 0;
}

bool is_lower_ascii(char32_t c) {
  return c >= 'a' && c <= 'z';
}
bool is_ascii_letter(char32_t c) {
  return is_lower_ascii(c | 0x20);
}

// Whether sequences in a row at [at, end) that spell `row` are mojibake and not what somebody wrote. Several
// in a row are; one on its own may be real text ("É" before a sign, "Å" before a point).
bool believable(const std::vector<char32_t>& text, size_t at, size_t end, const std::vector<char32_t>& row,
                Table table, size_t least_cyrillic) {
  if (row.empty()) return false;
  const bool sign = row[0] >= 0x2010 && row[0] < 0x2800;
  if (table == kMacRoman) return text[at] == 0x201A && sign;  // "‚Äô": E2 first
  if (table == kWindows1251) return row.size() >= least_cyrillic;
  if (row.size() >= 2 || sign || row[0] > 0xFFFF || row[0] == 0xFEFF || row[0] == 0xFFFD) return true;
  if (row[0] < 0x100) return true;  // "Â" and "Ã" before a sign: no language writes these
  // Letters beyond Latin-1 ("Å‚"): only inside a word.
  const bool in_word =
      (at > 0 && is_ascii_letter(text[at - 1])) || (end < text.size() && is_lower_ascii(text[end]));
  return row[0] < 0x180 && in_word && text[at + 1] != 0xA0;
}

// One pass over the text with one table.
bool repair_once(std::vector<char32_t>& text, Table table, size_t least_cyrillic, int64_t& repaired) {
  std::vector<char32_t> out;
  out.reserve(text.size());
  bool changed = false;
  for (size_t at = 0; at < text.size();) {
    if (text[at] < 0x80) {
      out.push_back(text[at++]);
      continue;
    }
    std::vector<char32_t> row;
    size_t end = at, length = 0;
    while (end < text.size()) {
      const char32_t c = text[end] < 0x80 ? 0 : misread(text, end, table, length);
      if (c == 0) break;
      row.push_back(c);
      end += length;
    }
    if (believable(text, at, end, row, table, least_cyrillic)) {
      out.insert(out.end(), row.begin(), row.end());
      repaired += static_cast<int64_t>(row.size());
      at = end;
      changed = true;
    } else {
      out.push_back(text[at++]);
    }
  }
  text = std::move(out);
  return changed;
}

std::string repair_mojibake(std::string_view utf8, int64_t& repaired) {
  std::vector<char32_t> text;
  text.reserve(utf8.size());
  for (size_t i = 0; i < utf8.size();) text.push_back(next_code_point(utf8, i));
  for (const Table table : {kWindows1252, kMacRoman, kWindows1251}) {
    // Four Cyrillic letters in a row are proof; short words are believed once there is some.
    for (int round = 0; round < 3 && repair_once(text, table, round == 0 ? 4 : 2, repaired); ++round) {
    }
  }
  std::string out;
  out.reserve(utf8.size());
  for (const char32_t c : text) append_code_point(out, c);
  return out;
}

// Whether a first character of any of the tables' sequences is there at all: most texts have none.
bool may_be_mojibake(std::string_view utf8) {
  for (size_t i = 0; i + 1 < utf8.size(); ++i) {
    const auto c = static_cast<uint8_t>(utf8[i]);
    if (c < 0x80) continue;
    // U+00C2..U+00F4 (C3 82..C3 B4); Cyrillic (D0, D1); U+201A of Mac Roman (E2 80 9A).
    const auto next = static_cast<uint8_t>(utf8[i + 1]);
    if ((c == 0xC3 && next >= 0x82 && next <= 0xB4) || c == 0xD0 || c == 0xD1) return true;
    if (c == 0xE2 && next == 0x80 && i + 2 < utf8.size() && static_cast<uint8_t>(utf8[i + 2]) == 0x9A)
      return true;
  }
  return false;
}

constexpr char32_t kRemove = 0xFFFFFFFF;

// What a character becomes. C1 controls are Windows-1252 that was read as Latin-1.
char32_t plain(char32_t c, const UnicodeConfig& config) {
  static constexpr char32_t kC1[32] = {0x20AC,  kRemove, 0x201A, 0x192,  0x201E, 0x2026,  0x2020, 0x2021,
                                       0x2C6,   0x2030,  0x160,  0x2039, 0x152,  kRemove, 0x17D,  kRemove,
                                       kRemove, 0x2018,  0x2019, 0x201C, 0x201D, 0x2022,  0x2013, 0x2014,
                                       0x2DC,   0x2122,  0x161,  0x203A, 0x153,  kRemove, 0x17E,  0x178};
  if (c < 0x20) {
    if (c == '\n' || c == '\t') return c;
    return c == '\v' || c == '\f' ? U'\n' : kRemove;
  }
  if (c < 0x7F) return c;
  if (c == 0x7F) return kRemove;
  if (c < 0xA0) return kC1[c - 0x80];
  if (c == 0xAD || c == 0x200B || c == 0xFEFF || c == 0x2060) return kRemove;  // invisible
  if ((c >= 0x202A && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069))
    return kRemove;  // turn the direction of text
  if (c == 0x2028 || c == 0x2029) return U'\n';
  if (config.plain_spaces && (c == 0xA0 || (c >= 0x2000 && c <= 0x200A) || c == 0x202F || c == 0x205F))
    return U' ';
  if ((c & 0xFFFE) == 0xFFFE || (c >= 0xFDD0 && c <= 0xFDEF)) return kRemove;  // not characters
  return c;
}

}  // namespace

void append_code_point(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | (c >> 12));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (c >> 18));
    out += static_cast<char>(0x80 | ((c >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

std::string clean_unicode(std::string_view utf8, const UnicodeConfig& config, UnicodeCounts& counts) {
  std::string repaired;
  if (config.repair_mojibake && may_be_mojibake(utf8)) {
    repaired = repair_mojibake(utf8, counts.mojibake);
    utf8 = repaired;
  }
  std::string out;
  out.reserve(utf8.size());
  size_t newlines = 0;
  const auto put = [&](char32_t c) {
    if (c == '\n') {  // no spaces before a line end, at most one empty line
      while (!out.empty() && (out.back() == ' ' || out.back() == '\t')) out.pop_back();
      if (++newlines > 2 || out.empty()) return;
    } else {
      newlines = 0;
    }
    append_code_point(out, c);
  };
  bool beyond_latin = false;
  for (size_t i = 0; i < utf8.size();) {
    const auto byte = static_cast<uint8_t>(utf8[i]);
    if (byte >= 0x20 && byte < 0x7F) {
      out += utf8[i++];
      newlines = 0;
      continue;
    }
    char32_t c = next_code_point(utf8, i);
    if (c == '\r') {
      if (i < utf8.size() && utf8[i] == '\n') continue;
      c = '\n';
    }
    c = plain(c, config);
    if (c == kRemove) {
      ++counts.controls;
      continue;
    }
    beyond_latin |= c >= 0x300;
    put(c);
  }
  while (!out.empty() && (out.back() == ' ' || out.back() == '\n' || out.back() == '\t')) out.pop_back();
  if (config.nfc && beyond_latin) {  // everything below U+0300 is in form C already
    UErrorCode status = U_ZERO_ERROR;
    const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(status);
    if (U_SUCCESS(status) && !nfc->isNormalizedUTF8(out, status) && U_SUCCESS(status)) {
      std::string composed;
      icu::StringByteSink<std::string> sink(&composed);
      nfc->normalizeUTF8(0, out, sink, nullptr, status);
      if (U_SUCCESS(status)) out = std::move(composed);
    }
  }
  return out;
}

}  // namespace flywheel::data
