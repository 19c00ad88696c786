#include "model/tokenizer.h"

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

namespace flywheel::model {
namespace {

// Writes the tokens of one text into an Encoding.
class Encoder {
 public:
  Encoder(const TokenizerParts& parts, std::string_view text, EncodeOptions options, bool tracked)
      : parts_(parts), text_(text), options_(options), tracked_(tracked) {}

  Encoding run() {
    if (options_.add_special) push_all(parts_.before);
    for (size_t at = 0; at < text_.size();) {
      const auto match = parts_.added.find(text_, at, options_.parse_special);
      if (match.span.begin > at) plain({at, match.span.begin});
      if (match.token) push(match.token->id, match.span);
      at = match.span.end;
    }
    if (options_.add_special) push_all(parts_.after);
    return std::move(out_);
  }

 private:
  void push(TokenId id, ByteSpan from) {
    out_.ids.push_back(id);
    if (tracked_) out_.offsets.push_back(from);
  }
  void push_all(const std::vector<TokenId>& ids) {
    for (const TokenId id : ids) push(id, {});
  }

  void plain(ByteSpan span) {
    const std::string_view part = text_.substr(span.begin, span.size());
    const PatternFn pattern = parts_.pretokenizer.only_pattern();
    if (pattern && parts_.added_normalized.empty() && parts_.normalizer.leaves(part)) {
      return pieces_by_pattern(part, span.begin, pattern);
    }
    AlignedText aligned = AlignedText::of(part, tracked_, span.begin);
    parts_.normalizer.apply(aligned);
    for (size_t at = 0; at < aligned.text.size();) {
      const auto match = parts_.added_normalized.find(aligned.text, at, options_.parse_special);
      if (match.span.begin > at) normalized(part_of(aligned, {at, match.span.begin}), span.begin + at == 0);
      if (match.token) push(match.token->id, aligned.origin_of(match.span));
      at = match.span.end;
    }
  }

  // The common case, with nothing copied: every piece is a part of the input.
  void pieces_by_pattern(std::string_view part, size_t base, PatternFn pattern) {
    for (size_t at = 0; at < part.size();) {
      const size_t end = pattern(part, at);
      ends_.clear();
      parts_.model->encode(part.substr(at, end - at), out_.ids, tracked_ ? &ends_ : nullptr);
      for (size_t begin = base + at; const uint32_t token_end : ends_) {
        out_.offsets.push_back({begin, base + at + token_end});
        begin = base + at + token_end;
      }
      at = end;
    }
  }

  static AlignedText part_of(const AlignedText& text, ByteSpan span) {
    if (span.begin == 0 && span.end == text.text.size()) return text;
    AlignedText part{text.text.substr(span.begin, span.size()), {}, text.tracked};
    if (text.tracked) {
      part.origin.assign(text.origin.begin() + static_cast<ptrdiff_t>(span.begin),
                         text.origin.begin() + static_cast<ptrdiff_t>(span.end));
    }
    return part;
  }

  void normalized(AlignedText text, bool at_start) {
    SplitText split = SplitText::of(std::move(text), at_start);
    parts_.pretokenizer.split(split);
    for (const ByteSpan piece : split.pieces) {
      ends_.clear();
      parts_.model->encode(std::string_view(split.text.text).substr(piece.begin, piece.size()), out_.ids,
                           tracked_ ? &ends_ : nullptr);
      for (size_t begin = piece.begin; const uint32_t token_end : ends_) {
        out_.offsets.push_back(split.text.origin_of({begin, piece.begin + token_end}));
        begin = piece.begin + token_end;
      }
    }
  }

  const TokenizerParts& parts_;
  const std::string_view text_;
  const EncodeOptions options_;
  const bool tracked_;
  Encoding out_;
  std::vector<uint32_t> ends_;
};

// Positions within one piece are kept in 32 bits.
void check_size(std::string_view text) {
  if (text.size() >= (size_t{1} << 31)) {
    throw UserError("", fmt::format("a text of {} bytes to tokenize", text.size()), "cut it below 2 GiB");
  }
}

}  // namespace

std::vector<TokenId> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  check_size(text);
  return Encoder(*parts_, text, options, false).run().ids;
}

Encoding Tokenizer::encode_with_offsets(std::string_view text, EncodeOptions options) const {
  check_size(text);
  return Encoder(*parts_, text, options, true).run();
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  TokenDecoder::Stream stream;
  for (const TokenId id : ids) {
    if (id < 0 || id >= vocab_size() || (skip_special && is_special(id))) continue;
    parts_->decoder.push(stream, parts_->tokens.text(id));
  }
  parts_->decoder.finish(stream);
  return parts_->decoder.take(stream);
}

TokenId Tokenizer::vocab_size() const {
  return parts_->tokens.size();
}

std::optional<TokenId> Tokenizer::token_id(std::string_view token) const {
  const TokenId id = parts_->tokens.find(token);
  return id == kNoToken ? std::nullopt : std::optional(id);
}

std::string Tokenizer::token(TokenId id) const {
  return std::string(parts_->tokens.text(id));
}

std::string Tokenizer::token_bytes(TokenId id) const {
  return parts_->decoder.bytes_of(parts_->tokens.text(id));
}

bool Tokenizer::is_special(TokenId id) const {
  return id >= 0 && static_cast<size_t>(id) < parts_->special.size() &&
         parts_->special[static_cast<size_t>(id)];
}

std::optional<TokenId> Tokenizer::bos() const {
  return parts_->bos;
}
std::optional<TokenId> Tokenizer::eos() const {
  return parts_->eos;
}
std::optional<TokenId> Tokenizer::unknown() const {
  return parts_->unknown;
}
std::optional<TokenId> Tokenizer::pad() const {
  return parts_->pad;
}
const std::vector<TokenId>& Tokenizer::end_tokens() const {
  return parts_->end_tokens;
}
bool Tokenizer::adds_bos() const {
  return parts_->bos && !parts_->before.empty() && parts_->before.front() == *parts_->bos;
}
const std::string& Tokenizer::chat_template() const {
  return parts_->chat_template;
}

struct Detokenizer::State {
  std::shared_ptr<const TokenizerParts> parts;
  bool skip_special;
  TokenDecoder::Stream stream;
};

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special)
    : state_(new State{tokenizer.parts_, skip_special, {}}) {}
Detokenizer::~Detokenizer() = default;
Detokenizer::Detokenizer(Detokenizer&&) noexcept = default;
Detokenizer& Detokenizer::operator=(Detokenizer&&) noexcept = default;

std::string Detokenizer::push(TokenId id) {
  const TokenizerParts& parts = *state_->parts;
  if (id < 0 || id >= parts.tokens.size()) return "";
  if (state_->skip_special && parts.special[static_cast<size_t>(id)]) return "";
  parts.decoder.push(state_->stream, parts.tokens.text(id));
  return parts.decoder.take(state_->stream);
}

std::string Detokenizer::finish() {
  state_->parts->decoder.finish(state_->stream);
  return state_->parts->decoder.take(state_->stream);
}

}  // namespace flywheel::model
