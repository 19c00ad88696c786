// What a tokenizer that loaded must hold to, on awkward text and on the input itself.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "model/tokenizer.h"
#include "model/unicode.h"

inline void use_tokenizer(const flywheel::model::Tokenizer& tokenizer, std::string_view input) {
  const std::string fixed = "Hello  world's 12345\n\n\xE3\x81\x82\xCC\x81 <unk>\xFF";
  const std::string end(input.substr(input.size() - std::min<size_t>(input.size(), 64)));
  for (const std::string& text : {fixed, end}) {
    const flywheel::model::Encoding encoding = tokenizer.encode_with_offsets(text);
    CHECK(encoding.ids.size() == encoding.offsets.size(), "{} ids, {} offsets", encoding.ids.size(),
          encoding.offsets.size());
    for (const auto& span : encoding.offsets) {
      CHECK(span.begin <= span.end && span.end <= text.size(), "bytes {} to {} of {}", span.begin, span.end,
            text.size());
    }
    CHECK(flywheel::model::is_valid_utf8(tokenizer.decode(encoding.ids)), "decode() gave no UTF-8");
    flywheel::model::Detokenizer stream(tokenizer, false);
    std::string joined;
    for (const auto id : encoding.ids) joined += stream.push(id);
    joined += stream.finish();
    CHECK(flywheel::model::is_valid_utf8(joined), "the Detokenizer gave no UTF-8");
  }
}
