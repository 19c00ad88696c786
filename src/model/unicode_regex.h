// Regular expressions over UTF-8, for tokenizers whose patterns are not among pretokenizer_pattern.h's.
// ICU's engine, with a limit on steps, because patterns come in files that anybody may have written.
//
// Threads: immutable; matches() may be called from any thread. Errors: kInvalid for a pattern that does not
// compile. A text on which the engine passes its limit has no further matches.
//
//   Result<UnicodeRegex> digits = UnicodeRegex::compile("\\p{N}{1,3}");
//   for (const ByteSpan match : digits.value().matches(text)) ...
#pragma once

#include <memory>

#include "base/result.h"
#include "model/tokenizer_text.h"

namespace flywheel::model {

class UnicodeRegex {
 public:
  static Result<UnicodeRegex> compile(std::string_view pattern);
  // All matches from left to right; empty ones are left out.
  std::vector<ByteSpan> matches(std::string_view text) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace flywheel::model
