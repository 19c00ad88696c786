// Template source to tokens, with the white space that trim_blocks, lstrip_blocks and {%- -%} take away.
#pragma once

#include "model/jinja_value.h"

namespace flywheel::model::jinja {

enum class TokenKind {
  kText,
  kBlockBegin,
  kBlockEnd,
  kPrintBegin,
  kPrintEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;
};

// Ends with a kEnd token. JinjaError with the line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace flywheel::model::jinja
