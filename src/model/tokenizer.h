// Text to token ids and back, for the tokenizers that language models come with.
//
// Reads tokenizer.json (byte-level BPE, SentencePiece BPE with byte fallback, Unigram, WordPiece), the
// vocabulary in a GGUF file, tiktoken ranks and SentencePiece models; train_bpe() (bpe_trainer.h) makes new
// ones. The same ids as the tokenizer's own library gives.
//
// Ownership: a Tokenizer is a handle to immutable data; copying it is cheap.
// Threads: every function may be called from any thread. A Detokenizer belongs to one.
// Errors: kInvalid (malformed, with what and where), kNotFound, kIo from the functions that load. encode()
// and decode() take anything: bytes that are not UTF-8 are encoded as they are where the vocabulary can, and
// an id out of range decodes to nothing.
//
//   ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::load("models/smollm2"));   // folder or file
//   std::vector<TokenId> ids = tokenizer.encode("Hello world");
//   std::string text = tokenizer.decode(ids);
//   Detokenizer stream(tokenizer);
//   for (TokenId id : generated) send(stream.push(id));   // whole characters only
//   send(stream.finish());
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "model/tokenizer_model.h"
#include "model/tokenizer_text.h"

namespace flywheel::model {

class GgufFile;
struct TokenizerParts;

struct EncodeOptions {
  // What the tokenizer puts around a text: BOS, EOS, [CLS] and [SEP].
  bool add_special = true;
  // "<|im_end|>" in the text is that token. Set it to false for text from users: it then stays text.
  bool parse_special = true;
};

struct Encoding {
  std::vector<TokenId> ids;
  // The bytes of the input behind each token; empty for tokens that were added. A token that is part of a
  // character that normalization changed has that whole character.
  std::vector<ByteSpan> offsets;
};

class Tokenizer {
 public:
  // A model folder (tokenizer.json or tokenizer.model, with tokenizer_config.json), or a file:
  // tokenizer.json,
  // *.gguf, *.tiktoken (also .gz; the name says which pattern), *.model. The kind is known by its content.
  static Result<Tokenizer> load(const std::string& path);
  // `config`: the text of tokenizer_config.json, or "".
  static Result<Tokenizer> from_json(std::string_view tokenizer_json, std::string_view config = "");
  static Result<Tokenizer> from_gguf(const GgufFile& file);
  static Result<Tokenizer> from_sentencepiece(std::string_view model);
  // `encoding`: cl100k_base, o200k_base, r50k_base, p50k_base, gpt2 or llama3: pattern and special tokens.
  static Result<Tokenizer> from_tiktoken(std::string_view ranks, const std::string& encoding);
  explicit Tokenizer(std::shared_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}

  std::vector<TokenId> encode(std::string_view text, EncodeOptions options = {}) const;
  Encoding encode_with_offsets(std::string_view text, EncodeOptions options = {}) const;
  // Ill-formed UTF-8 in the result is replaced by U+FFFD.
  std::string decode(std::span<const TokenId> ids, bool skip_special = false) const;

  // One more than the largest id.
  TokenId vocab_size() const;
  std::optional<TokenId> token_id(std::string_view token) const;  // as tokenizer.json writes it
  std::string token(TokenId id) const;                            // "" if there is no such id
  // What the token alone adds to a text, in bytes (it may be part of a character). For logprobs and grammars.
  std::string token_bytes(TokenId id) const;
  bool is_special(TokenId id) const;

  std::optional<TokenId> bos() const;
  std::optional<TokenId> eos() const;
  std::optional<TokenId> unknown() const;
  std::optional<TokenId> pad() const;
  // Tokens that end a generation: EOS, and the end of a turn where that is another one.
  const std::vector<TokenId>& end_tokens() const;
  // Whether encode() with add_special begins with BOS.
  bool adds_bos() const;
  const std::string& chat_template() const;  // "" if none came with it

 private:
  friend class Detokenizer;
  std::shared_ptr<const TokenizerParts> parts_;
};

// Ids one at a time to text, as they are generated. The pieces joined are what decode() gives.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = true);
  ~Detokenizer();
  Detokenizer(Detokenizer&&) noexcept;
  Detokenizer& operator=(Detokenizer&&) noexcept;
  // The text that is certain now: whole characters, often "" while one is incomplete.
  std::string push(TokenId id);
  // The rest; what never became a character is U+FFFD.
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace flywheel::model
