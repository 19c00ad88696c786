#include "model/byte_level.h"

#include <array>

#include "model/unicode.h"

namespace flywheel::model {
namespace {

// Printable Latin-1 bytes stand for themselves; the rest are U+0100 and up, in order.
struct ByteAlphabet {
  std::array<char32_t, 256> character{};
  std::array<int, 0x180> byte{};
  ByteAlphabet() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char32_t c = printable ? static_cast<char32_t>(b) : next++;
      character[static_cast<size_t>(b)] = c;
      byte[c] = b;
    }
  }
};
const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

}  // namespace

std::optional<std::string> bytes_of_byte_level(std::string_view text) {
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text, at);
    const int byte = c.value < 0x180 ? byte_alphabet().byte[c.value] : -1;
    if (byte < 0 || !c.valid) return std::nullopt;
    bytes += static_cast<char>(byte);
    at += c.size_bytes;
  }
  return bytes;
}

std::string byte_level_of_bytes(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) append_utf8(text, byte_alphabet().character[static_cast<unsigned char>(c)]);
  return text;
}

}  // namespace flywheel::model
