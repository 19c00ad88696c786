// The unigram language model: of all ways to write a piece in tokens, the most probable one (Viterbi).
//
// Ownership and threads as in tokenizer_model.h. Errors: create() refuses what would not be a vocabulary.
// Source: Kudo, "Subword Regularization" (ACL 2018).
//
//   Result<std::unique_ptr<Unigram>> model = Unigram::create(Vocabulary(tokens), scores, {.unknown = 0});
#pragma once

#include <array>
#include <memory>

#include "base/result.h"
#include "model/tokenizer_model.h"

namespace flywheel::model {

struct UnigramOptions {
  TokenId unknown = kNoToken;
  bool byte_fallback = false;     // unknown characters become <0xNN> tokens
  bool single_precision = false;  // sums in f32, as SentencePiece does; the `tokenizers` package uses f64
};

class Unigram final : public TokenModel {
 public:
  // scores[id]: log-probability. Tokens that text must never become (control tokens, <0xNN>) are left out of
  // `usable`.
  static Result<std::unique_ptr<Unigram>> create(Vocabulary vocabulary, std::vector<double> scores,
                                                 const std::vector<bool>& usable, UnigramOptions options);
  void encode(std::string_view piece, std::vector<TokenId>& ids, std::vector<uint32_t>* ends) const override;

 private:
  // A trie over the usable tokens; a node's children lie side by side, ordered by label.
  struct Node {
    TokenId token = kNoToken;
    uint32_t children = 0;  // index of the first
    uint16_t count = 0;
    uint8_t label = 0;
  };
  void build_trie(const std::vector<bool>& usable);
  const Node* child(const Node& node, uint8_t label) const;

  Vocabulary vocabulary_;
  std::vector<double> scores_;
  UnigramOptions options_;
  std::vector<Node> nodes_;
  std::array<uint32_t, 256> roots_{};  // first byte to node, 0: none
  std::vector<TokenId> bytes_;         // <0x00> to <0xFF>, or empty
  double unknown_score_ = 0;
};

}  // namespace flywheel::model
