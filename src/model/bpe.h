// Byte-pair encoding: symbols are merged pair by pair, the pair of lowest rank first, until none is left.
//
// One class serves the family. Byte-level BPE (GPT-2, Llama 3, Qwen) begins with bytes; SentencePiece BPE
// (Llama 2, Mistral) begins with characters and writes unknown ones as byte tokens; merges come as a list
// (tokenizer.json, GGUF) or follow from the tokens' scores or ranks (SentencePiece, tiktoken).
//
// Ownership and threads as in tokenizer_model.h. Errors: create() refuses what would not be a vocabulary.
// Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (ACL 2016).
//
//   Result<std::unique_ptr<Bpe>> bpe = Bpe::create(Vocabulary(tokens), merges, {.byte_level = true});
//   bpe.value()->encode("hello", ids, nullptr);
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>

#include "base/result.h"
#include "model/bpe_boundaries.h"
#include "model/tokenizer_model.h"

namespace flywheel::model {

struct BpeMerge {
  TokenId left, right, result;
  uint32_t rank;  // lower is earlier; of equal ranks the leftmost pair goes first
};

struct BpeOptions {
  bool byte_level = false;         // the vocabulary is bytes (not GPT-2's alphabet for them)
  bool whole_piece_first = false;  // a piece that is a token is that token, whatever the merges say
  bool byte_fallback = false;      // unknown characters become <0xNN> tokens
  bool fuse_unknown = false;       // neighbouring unknown characters become one unknown token
  TokenId unknown = kNoToken;
  std::string continuing_prefix;  // stands before symbols that do not begin a piece ("##")
  std::string end_suffix;         // stands after the symbol that ends a piece ("</w>")
};

class Bpe final : public TokenModel {
 public:
  static Result<std::unique_ptr<Bpe>> create(Vocabulary vocabulary, const std::vector<BpeMerge>& merges,
                                             BpeOptions options);
  void encode(std::string_view piece, std::vector<TokenId>& ids, std::vector<uint32_t>* ends) const override;
  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Pair {
    uint32_t rank = kNever;
    TokenId result = kNoToken;
  };
  struct Slot {
    uint64_t key;
    Pair pair;
  };
  struct Symbols;
  static constexpr uint32_t kNever = UINT32_MAX;

  Bpe(Vocabulary vocabulary, BpeOptions options)
      : vocabulary_(std::move(vocabulary)),
        options_(std::move(options)),
        plain_(options_.continuing_prefix.empty() && options_.end_suffix.empty()) {}
  Pair find_pair(TokenId left, TokenId right) const;
  void insert(const BpeMerge& merge);
  bool find_word_boundary_rule(const std::vector<BpeMerge>& merges) const;
  std::optional<BpeBoundaries> find_boundaries(const std::vector<BpeMerge>& merges) const;
  void encode_word(std::string_view word, std::vector<TokenId>& ids, std::vector<uint32_t>* ends,
                   uint32_t base) const;
  void encode_parts(std::string_view word, TokenId whole, std::vector<TokenId>& ids,
                    std::vector<uint32_t>* ends, uint32_t base) const;
  TokenId find_whole(std::string_view part) const { return plain_ ? vocabulary_.find(part) : kNoToken; }
  bool is_known(TokenId whole) const {
    return whole_[static_cast<size_t>(whole)].load(std::memory_order_relaxed) == 1;
  }
  void merge(std::string_view part, TokenId whole, std::vector<TokenId>& ids, std::vector<uint32_t>* ends,
             uint32_t base) const;
  void begin_with_bytes(std::string_view word, Symbols& symbols) const;
  void begin_with_characters(std::string_view word, Symbols& symbols) const;
  void find_whole_characters(const std::vector<BpeMerge>& merges);
  void merge_few(Symbols& symbols) const;
  void merge_many(Symbols& symbols) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  bool plain_;               // a symbol's text is the text it stands for
  std::vector<Slot> slots_;  // open addressing; key kEmptyKey: free
  // A bit for each of 16 times as many hashes: most pairs are no merge, and this part of the answer fits the
  // cache.
  std::vector<uint64_t> maybe_;
  std::vector<Pair> byte_pairs_;      // [256 * 256], byte level only: the first round without hashing
  std::array<TokenId, 256> bytes_{};  // byte level: the token of each byte; byte fallback: <0xNN>
  bool has_byte_tokens_ = false;
  // [code point up to U+FFFF], byte level only: the token of a character whose bytes are sure to come
  // together before anything else can touch them, so that merging may begin with it. kNoToken: begin with
  // bytes.
  std::vector<TokenId> whole_characters_;
  std::optional<BpeBoundaries> boundaries_;  // byte level only
  // No merge joins a character with a "▁" after it: a text may be cut there, and each word merged alone.
  bool words_begin_with_mark_ = false;
  // Does merging a token's own text give that token? 0 not known yet, 1 yes, 2 no. Found out when asked.
  mutable std::unique_ptr<std::atomic<uint8_t>[]> whole_;
};

// The merges that follow from a vocabulary alone: each way to write a token as two others, in the order that
// `rank_of_token` gives (SentencePiece: by descending score; tiktoken: by rank). kNoRank: never a result.
constexpr uint32_t kNoRank = UINT32_MAX;
std::vector<BpeMerge> merges_of_vocabulary(const Vocabulary& vocabulary,
                                           const std::vector<uint32_t>& rank_of_token);

}  // namespace flywheel::model
