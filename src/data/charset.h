// Bytes of unknown encoding into valid UTF-8.
//
// In this order, as browsers do (WHATWG Encoding): a byte order mark; the encoding that the document declares
// (`<meta charset>`, `<meta http-equiv>`, `<?xml encoding?>`, in its first 4,096 bytes); UTF-8 where the
// bytes are valid UTF-8; a guess from the byte statistics (ICU). A declaration that the bytes contradict is
// not believed: text that is valid UTF-8 with characters outside ASCII is UTF-8 whatever it says.
//
// Threads: any. Errors: none; what cannot be decoded becomes U+FFFD and is counted.
//
//   DecodedText text = decode_text(bytes, DeclaredCharset::kHtml);
//   text.utf8, text.charset ("windows-1252"), text.replacements
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace flywheel::data {

struct DecodedText {
  std::string utf8;
  std::string charset;       // the name that was used, lower case
  int64_t replacements = 0;  // U+FFFD that stand for bytes that could not be decoded
};

enum class DeclaredCharset { kNone, kHtml };  // whether to look for a declaration in the text

DecodedText decode_text(std::string_view bytes, DeclaredCharset declared);

// The encoding that a page declares in its first bytes, lower case; "" if none.
std::string declared_charset(std::string_view html);

// Length of the valid UTF-8 at the start (no surrogates, nothing above U+10FFFF, no overlong forms).
size_t valid_utf8_prefix(std::string_view bytes);

}  // namespace flywheel::data
