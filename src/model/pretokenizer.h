// Cutting normalized text into the pieces that a token never crosses, as tokenizer.json's "pre_tokenizer"
// says.
//
// Threads: immutable; split() may be called from any thread.
// Errors: kInvalid for a specification that is malformed or of a type that is not supported, with its name.
//
//   Result<Pretokenizer> pretokenizer = Pretokenizer::from_json(tokenizer["pre_tokenizer"]);
//   SplitText split = SplitText::of(normalized);
//   pretokenizer.value().split(split);      // split.pieces: spans of split.text
#pragma once

#include <functional>

#include "base/json.h"
#include "model/pretokenizer_pattern.h"
#include "model/tokenizer_text.h"

namespace flywheel::model {

struct SplitText {
  AlignedText text;
  std::vector<ByteSpan> pieces;  // in order; what lies between was removed
  bool at_start = true;          // the text begins the input (Metaspace's "first")

  static SplitText of(AlignedText text, bool at_start = true) {
    const size_t size = text.text.size();
    SplitText split{std::move(text), {}, at_start};
    if (size > 0) split.pieces.push_back({0, size});
    return split;
  }
};

class Pretokenizer {
 public:
  static Result<Pretokenizer> from_json(const Json& spec);  // null: one piece
  static Pretokenizer of_pattern(PatternFn pattern);
  static Result<Pretokenizer> of_regex(const std::string& regex);

  void split(SplitText& text) const;
  // Not null when all that happens is this pattern, on bytes as they are: the caller's fast path.
  PatternFn only_pattern() const { return only_pattern_; }
  // The last step writes bytes in GPT-2's alphabet, so the vocabulary is bytes. split() leaves bytes as they
  // are.
  bool byte_level() const { return byte_level_; }

 private:
  using Step = std::function<void(SplitText&)>;
  Result<void> add(const Json& spec);
  Result<void> add_split(const Json& spec);
  Result<void> add_byte_level(const Json& spec);
  Result<void> add_metaspace(const Json& spec);
  void find_only_pattern(const Json& spec);

  std::vector<Step> steps_;
  PatternFn only_pattern_ = nullptr;
  bool byte_level_ = false;
};

}  // namespace flywheel::model
