#include "model/unicode_regex.h"

#include <unicode/regex.h>
#include <unicode/utext.h>

#include "base/log.h"

namespace flywheel::model {

struct UnicodeRegex::State {
  std::unique_ptr<icu::RegexPattern> pattern;
};

namespace {
constexpr int32_t kTimeLimit = 2000;       // ICU's unit: about a millisecond each
constexpr int32_t kStackBytes = 16 << 20;  // backtracking state of one match
}  // namespace

Result<UnicodeRegex> UnicodeRegex::compile(std::string_view pattern) {
  UErrorCode status = U_ZERO_ERROR;
  UParseError where{};
  const auto text = icu::UnicodeString::fromUTF8({pattern.data(), static_cast<int32_t>(pattern.size())});
  auto state = std::make_shared<State>();
  state->pattern.reset(icu::RegexPattern::compile(text, 0, where, status));
  if (U_FAILURE(status)) {
    return make_error(ErrorCode::kInvalid, "regular expression `{}`: {} at character {}", pattern,
                      u_errorName(status), where.offset);
  }
  UnicodeRegex regex;
  regex.state_ = std::move(state);
  return regex;
}

std::vector<ByteSpan> UnicodeRegex::matches(std::string_view text) const {
  std::vector<ByteSpan> found;
  UErrorCode status = U_ZERO_ERROR;
  UText input = UTEXT_INITIALIZER;
  utext_openUTF8(&input, text.data(), static_cast<int64_t>(text.size()), &status);
  const std::unique_ptr<icu::RegexMatcher> matcher(state_->pattern->matcher(status));
  if (U_SUCCESS(status)) {
    matcher->setTimeLimit(kTimeLimit, status);
    matcher->setStackLimit(kStackBytes, status);
    matcher->reset(&input);
    while (U_SUCCESS(status) && matcher->find(status)) {
      const ByteSpan match{static_cast<size_t>(matcher->start64(status)),
                           static_cast<size_t>(matcher->end64(status))};
      if (match.size() > 0) found.push_back(match);
    }
  }
  if (U_FAILURE(status)) LOG_WARN("tokenizer regex stopped early: {}", u_errorName(status));
  utext_close(&input);
  return found;
}

}  // namespace flywheel::model
