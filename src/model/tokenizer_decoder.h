// Tokens back to text, as tokenizer.json's "decoder" says. Streaming is the only way it works: decoding a
// list is pushing its tokens and finishing.
//
// Threads: TokenDecoder is immutable; a Stream belongs to one thread.
// Errors: kInvalid for a specification that is malformed or of a type that is not supported.
//
//   TokenDecoder::Stream stream;
//   decoder.push(stream, "\xE2\x96\x81hello");
//   text += stream.take(decoder);
//   decoder.finish(stream);
//   text += stream.take(decoder);
#pragma once

#include <functional>

#include "base/json.h"

namespace flywheel::model {

class TokenDecoder {
 public:
  struct Stream {
    std::string bytes;  // decoded, not taken yet
    bool first = true;  // no token was pushed yet
    bool finished = false;
    size_t stripped = 0;  // how often the leading text was stripped
    bool still_at_start = true;
    std::string held;  // decoded, but dropped if nothing follows
  };

  static Result<TokenDecoder> from_json(const Json& spec);  // null: tokens joined by spaces

  void push(Stream& stream, std::string_view token) const;
  void finish(Stream& stream) const;
  // The whole characters in the stream so far, removed from it.
  std::string take(Stream& stream) const;
  // What this token adds, were it not the first.
  std::string bytes_of(std::string_view token) const;

 private:
  // Changes one token; `first` is true for the first of the text.
  using Step = std::function<void(std::string& token, bool first)>;
  Result<void> add(const Json& spec);
  void add_strip(const Json& spec);
  std::string decode_one(std::string_view token, bool first, bool& is_byte) const;

  std::vector<Step> steps_;
  bool byte_fallback_ = false;
  bool fused_ = false;  // later steps are for the whole text
  bool spaces_between_ = false;
  std::string strip_, drop_at_end_;
  size_t strip_count_ = 0;
};

}  // namespace flywheel::model
