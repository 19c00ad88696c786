// What stands at the heart of a tokenizer: the vocabulary, and the algorithm that cuts one piece of
// normalized text into tokens of it (bpe.h, unigram.h, wordpiece.h).
//
// Threads: immutable after construction; encode() may be called from any thread.
// Errors: encode() has none: what the vocabulary cannot say becomes the unknown token, or nothing where there
// is none, as the tokenizer's file asks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace flywheel::model {

using TokenId = int32_t;
constexpr TokenId kNoToken = -1;

class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends the tokens of `piece` to `ids` and, unless null, to `ends` where each one ends in `piece`
  // (bytes).
  virtual void encode(std::string_view piece, std::vector<TokenId>& ids,
                      std::vector<uint32_t>* ends) const = 0;
};

// Tokens by id and ids by token. Bytes, not text: a token of byte-level BPE may be half a character.
class Vocabulary {
 public:
  Vocabulary() = default;
  // tokens[id]; ids with an empty text are holes that find() never gives. Of equal texts the first wins.
  explicit Vocabulary(const std::vector<std::string>& tokens);

  TokenId find(std::string_view text) const;  // kNoToken if it is not there
  std::string_view text(TokenId id) const;    // "" for a hole or an id out of range
  TokenId size() const { return static_cast<TokenId>(offsets_.empty() ? 0 : offsets_.size() - 1); }
  size_t longest_bytes() const { return longest_; }

 private:
  struct Slot {
    uint32_t tag;  // high bits of the hash, so that most misses touch no text
    TokenId id;
  };
  std::string bytes_;
  std::vector<uint64_t> offsets_;
  std::vector<Slot> slots_;
  size_t longest_ = 0;
};

// The byte that a token like "<0x0A>" stands for, or -1.
int byte_of_token(std::string_view token);
// The 256 ids of <0x00> to <0xFF>; empty unless all are there.
std::vector<TokenId> byte_tokens(const Vocabulary& vocabulary);

}  // namespace flywheel::model
