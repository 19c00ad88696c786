// The parts of a Tokenizer, for the files that build one: tokenizer_json.cc, tokenizer_gguf.cc, tiktoken.cc,
// sentencepiece.cc. Everyone else uses tokenizer.h.
#pragma once

#include <bitset>

#include "model/normalizer.h"
#include "model/pretokenizer.h"
#include "model/tokenizer.h"
#include "model/tokenizer_decoder.h"

namespace flywheel::model {

struct AddedToken {
  TokenId id = kNoToken;
  std::string content;
  bool special = false;
  bool normalized = false;                       // looked for in the normalized text, not in the original
  bool single_word = false;                      // not where a letter or digit touches it
  bool strip_left = false, strip_right = false;  // takes the white space beside it
};

// Finds added tokens in text: leftmost, and of those the longest.
class AddedTokenFinder {
 public:
  struct Match {
    ByteSpan span;
    const AddedToken* token = nullptr;  // nullptr: no further match
  };
  AddedTokenFinder() = default;
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);
  bool empty() const { return tokens_.empty(); }
  Match find(std::string_view text, size_t from, bool parse_special) const;

 private:
  const AddedToken* at(std::string_view text, size_t begin, bool parse_special) const;
  std::vector<AddedToken> tokens_;
  Vocabulary contents_;           // ids are indices into tokens_
  std::vector<size_t> lengths_;   // that occur, longest first
  std::vector<bool> beginnings_;  // [first byte * 256 + second byte]
  std::bitset<256> single_;       // tokens of one byte
};

struct TokenizerParts {
  Normalizer normalizer;
  Pretokenizer pretokenizer;
  std::unique_ptr<TokenModel> model;
  TokenDecoder decoder;
  AddedTokenFinder added;              // in the original text
  AddedTokenFinder added_normalized;   // in the normalized text
  Vocabulary tokens;                   // all of them, as the file writes them
  std::vector<bool> special;           // [id]
  std::vector<TokenId> before, after;  // what add_special puts around a text
  std::optional<TokenId> bos, eos, unknown, pad;
  std::vector<TokenId> end_tokens;
  std::string chat_template;

  // Takes the list apart by `normalized`, notes the special ones. After `tokens` is set.
  void set_added(std::vector<AddedToken> list);
  // EOS and the tokens that by their names end a turn. After eos and `tokens` are set.
  void find_end_tokens();
};

}  // namespace flywheel::model
