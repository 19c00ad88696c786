// Text from the command line, files and the environment may be any bytes. What goes on into JSON or a
// tokenizer must be UTF-8, and is looked at here first.
//
//   check_utf8("--prompt", prompt);   // "--prompt: byte 1 (0xFF) is not UTF-8; ..."
#pragma once

#include <string>

namespace flywheel::cli {

// UserError naming the first byte of `text` that is not UTF-8. `hint`: what to do about it.
void check_utf8(const std::string& where, const std::string& text,
                const std::string& hint = "`iconv -t UTF-8` converts text of other encodings");

}  // namespace flywheel::cli
