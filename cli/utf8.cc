#include "utf8.h"

#include "base/result.h"
#include "model/unicode.h"

namespace flywheel::cli {

void check_utf8(const std::string& where, const std::string& text, const std::string& hint) {
  for (size_t at = 0; at < text.size();) {
    const model::CodePoint c = model::decode_utf8(text, at);
    if (!c.valid) {
      const unsigned byte = static_cast<unsigned char>(text[at]);
      throw UserError(where, fmt::format("byte {} (0x{:02X}) is not UTF-8", at + 1, byte), hint);
    }
    at += c.size_bytes;
  }
}

}  // namespace flywheel::cli
