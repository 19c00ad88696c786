// Rewriting text before it is cut into pieces, as tokenizer.json's "normalizer" and SentencePiece models say.
//
// Threads: immutable; apply() may be called from any thread.
// Errors: kInvalid for a specification that is malformed or of a type that is not supported, with its name.
//
//   Result<Normalizer> normalizer = Normalizer::from_json(tokenizer["normalizer"]);
//   AlignedText text = AlignedText::of(original, true);
//   normalizer.value().apply(text);
#pragma once

#include <functional>

#include "base/json.h"
#include "model/tokenizer_text.h"

namespace flywheel::model {

class Normalizer {
 public:
  static Result<Normalizer> from_json(const Json& spec);  // null: nothing changes

  void apply(AlignedText& text) const;
  // True if apply() would surely change nothing (it may be false and still change nothing).
  bool leaves(std::string_view text) const;
  bool is_identity() const { return steps_.empty(); }

  // Steps for tokenizers that come in other forms than JSON.
  void add_replace(const std::string& from, const std::string& to);
  void add_prepend(const std::string& prefix);  // unless the text is empty
  Result<void> add_charsmap(std::string_view precompiled, bool by_grapheme);
  // SentencePiece: no white space at both ends, and single spaces between.
  void add_squeeze_spaces();

 private:
  using Step = std::function<void(AlignedText&)>;
  using Test = std::function<bool(std::string_view)>;
  static bool never(std::string_view) { return false; }
  void add(Step step, Test leaves = never);
  Result<void> add_json(const Json& spec);
  void add_form(const std::string& name);
  void add_bert(const Json& spec);

  std::vector<Step> steps_;
  std::vector<Test> leaves_;
};

}  // namespace flywheel::model
