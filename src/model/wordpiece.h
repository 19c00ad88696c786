// WordPiece, as in BERT: from the front of a word, the longest token that fits, again and again.
//
// Ownership and threads as in tokenizer_model.h. A word that cannot be written, or is too long, is unknown.
// Source: Schuster and Nakajima, "Japanese and Korean Voice Search" (ICASSP 2012).
//
//   WordPiece model(Vocabulary(tokens), {.unknown = 100});
#pragma once

#include "model/tokenizer_model.h"

namespace flywheel::model {

struct WordPieceOptions {
  TokenId unknown = kNoToken;
  std::string continuing_prefix = "##";  // stands before tokens inside a word
  size_t longest_word = 100;             // characters
};

class WordPiece final : public TokenModel {
 public:
  WordPiece(Vocabulary vocabulary, WordPieceOptions options)
      : vocabulary_(std::move(vocabulary)), options_(std::move(options)) {}
  void encode(std::string_view piece, std::vector<TokenId>& ids, std::vector<uint32_t>* ends) const override;

 private:
  Vocabulary vocabulary_;
  WordPieceOptions options_;
};

}  // namespace flywheel::model
