// Unicode for tokenizers: decoding UTF-8 that may be broken, and the classes of characters that pre-tokenizer
// patterns speak of (\p{L}, \p{N}, \s, ...).
//
// Threads: all functions may be called from any thread. Errors: none; what is not UTF-8 reads as U+FFFD,
// one byte at a time, so that every byte of a text belongs to exactly one character.
//
//   for (size_t at = 0; at < text.size();) {
//     const CodePoint c = decode_utf8(text, at);
//     if (has_class(c.value, kLetter)) ...
//     at += c.size_bytes;
//   }
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace flywheel::model {

constexpr char32_t kReplacementCharacter = 0xFFFD;

struct CodePoint {
  char32_t value;
  uint32_t size_bytes;
  bool valid;  // false: these bytes are not UTF-8
};

// The character that begins at byte `at` (at < text.size()).
CodePoint decode_utf8(std::string_view text, size_t at);
void append_utf8(std::string& out, char32_t c);
bool is_valid_utf8(std::string_view text);
// Bytes that one U+FFFD replaces at `at`, where decode_utf8 says invalid: the longest beginning of a
// character, at least one byte (the Unicode Standard's "maximal subpart", which most decoders follow).
size_t ill_formed_size(std::string_view text, size_t at);
// The text with each ill-formed part replaced by one U+FFFD.
std::string repair_utf8(std::string_view text);
// How many bytes at the end of `text` are the beginning of a character whose rest may still come.
size_t incomplete_utf8_tail(std::string_view text);
size_t count_code_points(std::string_view text);

// Classes, as bits: general categories joined as the patterns of tokenizers use them.
enum CharClass : uint16_t {
  kLetter = 1 << 0,       // L
  kNumber = 1 << 1,       // N
  kSpace = 1 << 2,        // White_Space
  kUpperLike = 1 << 3,    // Lu Lt Lm Lo M
  kLowerLike = 1 << 4,    // Ll Lm Lo M
  kMark = 1 << 5,         // M
  kPunctuation = 1 << 6,  // P
  kSymbol = 1 << 7,       // S
  kControl = 1 << 8,      // Cc Cf Cn Co
  kDecimal = 1 << 9,      // Nd
  kNonspacing = 1 << 10,  // Mn
  kConnector = 1 << 11,   // Pc
  kIdeograph = 1 << 12,   // the CJK blocks that BERT's tokenizers split character by character
};

// One entry for each code point up to U+10FFFF; made at first use.
const uint16_t* char_classes();
inline bool has_class(char32_t c, uint16_t classes) {
  return (char_classes()[c] & classes) != 0;
}

char32_t to_lower(char32_t c);

// Bytes from `at` to the end of the (extended) grapheme cluster that begins there.
size_t grapheme_size(std::string_view text, size_t at);

}  // namespace flywheel::model
