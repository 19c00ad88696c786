#include "model/pretokenizer_pattern.h"

#include "model/unicode.h"

namespace flywheel::model {

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kCl100kPattern =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s)";
const std::string_view kO200kPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kTekkenPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

enum class Contractions { kNone, kLowerCase, kAnyCase, kAfterWord };
enum class Words {
  kAfterSpace,     // ` ?\p{L}+`
  kAfterAny,       // `[^\r\n\p{L}\p{N}]?\p{L}+`
  kCasedAfterAny,  // capitals then small letters, as in o200k
};

// What distinguishes one pattern of this family from another.
struct Shape {
  Contractions contractions;
  Words words;
  int max_digits;             // 0: ` ?\p{N}+`
  bool lines_end_pieces;      // punctuation takes the newlines after it; `\s*[\r\n]+` is a piece
  bool slash_is_newline;      // ... and slashes
  bool whole_trailing_space;  // `\s++$`
  bool digits_are_walls;      // each digit was split off before: to the rest it is the end of the text
};

constexpr Shape kGpt2{Contractions::kLowerCase, Words::kAfterSpace, 0, false, false, false, false};
constexpr Shape kGpt2Digits{Contractions::kLowerCase, Words::kAfterSpace, 1, false, false, false, true};
constexpr Shape kLlama3{Contractions::kAnyCase, Words::kAfterAny, 3, true, false, false, false};
constexpr Shape kQwen2{Contractions::kAnyCase, Words::kAfterAny, 1, true, false, false, false};
constexpr Shape kCl100k{Contractions::kAnyCase, Words::kAfterAny, 3, true, false, true, false};
constexpr Shape kO200k{Contractions::kAfterWord, Words::kCasedAfterAny, 3, true, true, false, false};
constexpr Shape kTekken{Contractions::kNone, Words::kCasedAfterAny, 1, true, true, false, false};

struct Char {
  uint16_t classes;
  uint32_t size_bytes;
};

inline Char char_at(std::string_view text, size_t at, const uint16_t* classes) {
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte < 0x80) [[likely]]
    return {classes[byte], 1};
  const CodePoint c = decode_utf8(text, at);
  return {classes[c.value], c.size_bytes};
}

// The end of the run of characters that have one of `wanted`.
inline size_t run(std::string_view text, size_t at, const uint16_t* classes, uint16_t wanted) {
  while (at < text.size()) {
    const Char c = char_at(text, at, classes);
    if (!(c.classes & wanted)) break;
    at += c.size_bytes;
  }
  return at;
}

// Bytes of 's 't 're 've 'm 'll 'd at `at`, or 0. Without regard to case, U+017F is an s.
template <bool kIgnoreCase>
size_t contraction(std::string_view text, size_t at) {
  if (at + 1 >= text.size() || text[at] != '\'') return 0;
  const auto lower = [](char c) {
    return kIgnoreCase && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char a = lower(text[at + 1]);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (at + 2 >= text.size()) return 0;
  if (kIgnoreCase && text[at + 1] == '\xC5' && text[at + 2] == '\xBF') return 3;
  const char b = lower(text[at + 2]);
  return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

// `[Lu Lt Lm Lo M]*[Ll Lm Lo M]+`, else `[Lu Lt Lm Lo M]+`, from `at`; `at` itself if neither matches.
size_t small_after_capitals(std::string_view text, size_t at, const uint16_t* classes) {
  const size_t capitals_end = run(text, at, classes, kUpperLike);
  const size_t small_end = run(text, capitals_end, classes, kLowerLike);
  if (small_end > capitals_end) return small_end;
  // The capitals give characters back until the last of them counts as small too.
  size_t end = capitals_end;
  while (end > at) {
    size_t begin = end - 1;
    while (begin > at && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
    if (char_at(text, begin, classes).classes & kLowerLike) return end;
    end = begin;
  }
  return at;
}

template <Shape kShape>
size_t cased_word(std::string_view text, size_t at, Char first, const uint16_t* classes) {
  const bool may_lead = !(first.classes & (kLetter | kNumber)) && text[at] != '\r' && text[at] != '\n';
  const size_t after = at + first.size_bytes;
  size_t end = at;
  if (may_lead && after < text.size()) {
    const size_t word = small_after_capitals(text, after, classes);
    if (word > after) end = word;
  }
  if (end == at) end = small_after_capitals(text, at, classes);
  if (end == at && may_lead && after < text.size()) {
    const size_t capitals = run(text, after, classes, kUpperLike);
    if (capitals > after) end = capitals;
  }
  if (end == at) end = run(text, at, classes, kUpperLike);
  if (end > at && kShape.contractions == Contractions::kAfterWord) end += contraction<true>(text, end);
  return end;
}

template <Shape kShape>
size_t white_space(std::string_view text, size_t at, const uint16_t* classes) {
  size_t end = at, last_begin = at, after_newline = 0;
  while (end < text.size()) {
    const Char c = char_at(text, end, classes);
    if (!(c.classes & kSpace)) break;
    last_begin = end;
    end += c.size_bytes;
    if (text[last_begin] == '\n' || text[last_begin] == '\r') after_newline = end;
  }
  if (kShape.whole_trailing_space && end == text.size()) return end;
  if (kShape.lines_end_pieces && after_newline > 0) return after_newline;
  if (end == text.size()) return end;
  if (kShape.digits_are_walls && (char_at(text, end, classes).classes & kNumber)) return end;
  return last_begin > at ? last_begin : end;  // the last space belongs to the word after it
}

template <Shape kShape>
size_t next_piece(std::string_view text, size_t at) {
  static const uint16_t* const classes = char_classes();
  const Char first = char_at(text, at, classes);
  const size_t after = at + first.size_bytes;

  if (kShape.contractions == Contractions::kLowerCase || kShape.contractions == Contractions::kAnyCase) {
    const size_t size = contraction<kShape.contractions == Contractions::kAnyCase>(text, at);
    if (size > 0) return at + size;
  }
  if (kShape.words == Words::kCasedAfterAny) {
    const size_t end = cased_word<kShape>(text, at, first, classes);
    if (end > at) return end;
  } else {
    if (first.classes & kLetter) return run(text, after, classes, kLetter);
    const bool may_lead = kShape.words == Words::kAfterSpace
                              ? text[at] == ' '
                              : !(first.classes & kNumber) && text[at] != '\r' && text[at] != '\n';
    if (may_lead && after < text.size()) {
      const size_t end = run(text, after, classes, kLetter);
      if (end > after) return end;
    }
  }
  const bool space_first = text[at] == ' ' && after < text.size();
  if (first.classes & kNumber) {
    if (kShape.max_digits == 0) return run(text, after, classes, kNumber);
    size_t end = after;
    for (int digits = 1; digits < kShape.max_digits && end < text.size(); ++digits) {
      const Char c = char_at(text, end, classes);
      if (!(c.classes & kNumber)) break;
      end += c.size_bytes;
    }
    return end;
  }
  if (kShape.max_digits == 0 && space_first) {
    const size_t end = run(text, after, classes, kNumber);
    if (end > after) return end;
  }
  // ` ?[^\s\p{L}\p{N}]+` and, in most patterns, the newlines after it.
  size_t end = first.classes & kSpace ? (space_first ? after : text.size()) : at;
  const size_t punctuation = end;
  while (end < text.size()) {
    const Char c = char_at(text, end, classes);
    if (c.classes & (kSpace | kLetter | kNumber)) break;
    end += c.size_bytes;
  }
  if (end > punctuation) {
    while (kShape.lines_end_pieces && end < text.size() &&
           (text[end] == '\r' || text[end] == '\n' || (kShape.slash_is_newline && text[end] == '/'))) {
      ++end;
    }
    return end;
  }
  return white_space<kShape>(text, at, classes);
}

}  // namespace

PatternFn find_pattern(std::string_view regex) {
  struct Known {
    std::string_view regex;
    PatternFn next;
  };
  static const Known known[] = {
      {kGpt2Pattern, next_piece<kGpt2>},   {kLlama3Pattern, next_piece<kLlama3>},
      {kQwen2Pattern, next_piece<kQwen2>}, {kCl100kPattern, next_piece<kCl100k>},
      {kO200kPattern, next_piece<kO200k>}, {kTekkenPattern, next_piece<kTekken>},
  };
  for (const Known& pattern : known) {
    if (pattern.regex == regex) return pattern.next;
  }
  return nullptr;
}

PatternFn gpt2_pattern_with_single_digits() {
  return next_piece<kGpt2Digits>;
}

}  // namespace flywheel::model
