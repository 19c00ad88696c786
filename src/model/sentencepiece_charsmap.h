// SentencePiece's precompiled normalization: a table of strings and what replaces them, found through a
// double-array trie (the layout of the darts-clone library).
//
// Threads: immutable. Errors: parse() gives kInvalid for a table whose parts do not fit; a trie that points
// outside itself simply has no match there.
// Layout: u32 size of the trie in bytes; the trie's u32 units; the replacements, each ending with a zero
// byte.
#pragma once

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "model/tokenizer_text.h"

namespace flywheel::model {

class Charsmap {
 public:
  static Result<Charsmap> parse(std::string_view precompiled);

  // by_grapheme false: the longest match at each place, as SentencePiece does. true: as the `tokenizers`
  // package does, which asks for whole grapheme clusters of up to 5 bytes first, then character by character.
  void apply(AlignedText& text, bool by_grapheme) const;

 private:
  struct Match {
    size_t size = 0;  // bytes of the text; 0: none
    std::string_view replacement;
  };
  Match longest(std::string_view text, size_t at) const;
  Match shortest(std::string_view text) const;
  Match find(std::string_view text, bool stop_at_first) const;
  void apply_longest(AlignedText& text) const;
  void apply_by_grapheme(AlignedText& text) const;

  std::shared_ptr<const std::vector<uint32_t>> units_;
  std::shared_ptr<const std::string> replacements_;
};

Result<std::string> decode_base64(std::string_view text);

}  // namespace flywheel::model
