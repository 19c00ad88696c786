// GPT-2's alphabet: every byte as a printable character, so that a vocabulary of bytes can be written as
// text.
//
//   byte_level_of_bytes(" a\n");      // "\u0120a\u010A"
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace flywheel::model {

std::string byte_level_of_bytes(std::string_view bytes);
// nullopt where a character is not one of the 256.
std::optional<std::string> bytes_of_byte_level(std::string_view text);

}  // namespace flywheel::model
