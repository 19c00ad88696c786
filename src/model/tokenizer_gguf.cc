// Tokenizers from the tokenizer.ggml.* metadata of GGUF files.
#include <algorithm>

#include "model/bpe.h"
#include "model/byte_level.h"
#include "model/gguf.h"
#include "model/tokenizer_gguf_internal.h"
#include "model/tokenizer_internal.h"
#include "model/tokenizer_scores.h"
#include "model/unigram.h"
#include "model/wordpiece.h"

namespace flywheel::model {
namespace {

const std::string kMark = "\xE2\x96\x81";

class GgufTokenizer {
 public:
  explicit GgufTokenizer(const GgufFile& file) : file_(file) {}

  Result<std::shared_ptr<TokenizerParts>> read() {
    ASSIGN_OR_RETURN(const std::string_view kind, file_.string("tokenizer.ggml.model"));
    RETURN_IF_ERROR(read_tokens());
    read_special_ids();
    if (kind == "gpt2") {
      RETURN_IF_ERROR(make_byte_level());
    } else if (kind == "llama") {
      RETURN_IF_ERROR(make_scored_bpe());
    } else if (kind == "bert") {
      RETURN_IF_ERROR(make_wordpiece());
    } else if (kind == "t5") {
      RETURN_IF_ERROR(make_unigram());
    } else {
      return make_error(ErrorCode::kInvalid,
                        "{}: tokenizer.ggml.model is {}; gpt2, llama, bert and t5 can be read", file_.path(),
                        kind);
    }
    parts_->tokens = Vocabulary(tokens_);
    set_added();
    set_around(kind);
    parts_->find_end_tokens();
    if (const auto chat = file_.string("tokenizer.chat_template"); chat.ok()) {
      parts_->chat_template = *chat;
    }
    return parts_;
  }

 private:
  Error wrong_count(const char* key, size_t count) const {
    return make_error(ErrorCode::kCorrupt, "{}: {} has {} entries for {} tokens", file_.path(), key, count,
                      tokens_.size());
  }

  Result<void> read_tokens() {
    ASSIGN_OR_RETURN(const std::vector<std::string_view> tokens, file_.strings("tokenizer.ggml.tokens"));
    tokens_.assign(tokens.begin(), tokens.end());
    types_.assign(tokens_.size(), token_type::kNormal);
    if (file_.has("tokenizer.ggml.token_type")) {
      ASSIGN_OR_RETURN(types_, file_.integers("tokenizer.ggml.token_type"));
      if (types_.size() != tokens_.size()) return wrong_count("tokenizer.ggml.token_type", types_.size());
    }
    // What plain text may become: not control tokens, nor what is looked for before the model runs.
    usable_ = tokens_;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (types_[i] != token_type::kNormal && types_[i] != token_type::kByte) usable_[i].clear();
    }
    return {};
  }

  std::optional<TokenId> id(const char* name) const {
    const auto value = file_.integer(std::string("tokenizer.ggml.") + name + "_token_id");
    if (!value.ok() || *value < 0 || *value >= static_cast<int64_t>(tokens_.size())) return std::nullopt;
    return static_cast<TokenId>(*value);
  }

  void read_special_ids() {
    parts_->bos = id("bos");
    parts_->eos = id("eos");
    parts_->unknown = id("unknown");
    parts_->pad = id("padding");
    for (size_t i = 0; i < types_.size() && !parts_->unknown; ++i) {
      if (types_[i] == token_type::kUnknown) parts_->unknown = static_cast<TokenId>(i);
    }
  }

  Result<void> make_byte_level() {
    ASSIGN_OR_RETURN(const GgufPretokenizer pre, gguf_pretokenizer(file_));
    ASSIGN_OR_RETURN(parts_->pretokenizer, Pretokenizer::from_json(pre.spec));
    if (pre.nfc) {
      ASSIGN_OR_RETURN(parts_->normalizer, Normalizer::from_json({{"type", "NFC"}}));
    }
    ASSIGN_OR_RETURN(parts_->decoder, TokenDecoder::from_json({{"type", "ByteLevel"}}));

    ASSIGN_OR_RETURN(const std::vector<std::string_view> lines, file_.strings("tokenizer.ggml.merges"));
    const Vocabulary written(tokens_);
    std::vector<BpeMerge> merges;
    std::string joined;
    for (const std::string_view line : lines) {
      // The first space may be a token's own, so it is looked for from the second byte on.
      const size_t space = line.find(' ', 1);
      if (space == std::string_view::npos) continue;
      joined = line.substr(0, space);
      joined += line.substr(space + 1);
      const BpeMerge merge{written.find(line.substr(0, space)), written.find(line.substr(space + 1)),
                           written.find(joined), static_cast<uint32_t>(merges.size())};
      if (merge.left == kNoToken || merge.right == kNoToken || merge.result == kNoToken) {
        return make_error(ErrorCode::kCorrupt, "{}: merge `{}` is not of tokens in the vocabulary",
                          file_.path(), line);
      }
      merges.push_back(merge);
    }
    for (std::string& token : usable_) token = bytes_of_byte_level(token).value_or("");
    BpeOptions options;
    options.byte_level = true;
    options.whole_piece_first = pre.whole_piece_first;
    ASSIGN_OR_RETURN(parts_->model, Bpe::create(Vocabulary(usable_), merges, options));
    return {};
  }

  bool flag(const char* name, bool fallback) const {
    return file_.boolean(std::string("tokenizer.ggml.") + name).value_or(fallback);
  }

  Result<std::vector<double>> scores() const {
    ASSIGN_OR_RETURN(const std::vector<float> scores, file_.floats("tokenizer.ggml.scores"));
    if (scores.size() != tokens_.size()) return wrong_count("tokenizer.ggml.scores", scores.size());
    return std::vector<double>(scores.begin(), scores.end());
  }

  // SentencePiece: spaces are marks, one stands before the text, unknown characters are bytes.
  Result<void> set_sentencepiece_text() {
    if (flag("remove_extra_whitespaces", false)) parts_->normalizer.add_squeeze_spaces();
    const bool prefix = flag("add_space_prefix", true);
    if (prefix) parts_->normalizer.add_prepend(kMark);
    parts_->normalizer.add_replace(" ", kMark);
    ASSIGN_OR_RETURN(parts_->decoder, TokenDecoder::from_json(sentencepiece_decoder(prefix)));
    return {};
  }

  Result<void> make_scored_bpe() {
    ASSIGN_OR_RETURN(const std::vector<double> score, scores());
    RETURN_IF_ERROR(set_sentencepiece_text());
    std::vector<bool> mergeable(tokens_.size());
    for (size_t i = 0; i < tokens_.size(); ++i) mergeable[i] = types_[i] == token_type::kNormal;
    BpeOptions options;
    options.byte_fallback = true;
    options.unknown = parts_->unknown.value_or(kNoToken);
    Vocabulary vocabulary(usable_);
    ASSIGN_OR_RETURN(const std::vector<BpeMerge> merges, merges_of_scores(vocabulary, score, mergeable));
    ASSIGN_OR_RETURN(parts_->model, Bpe::create(std::move(vocabulary), merges, options));
    return {};
  }

  Result<void> make_unigram() {
    ASSIGN_OR_RETURN(std::vector<double> score, scores());
    if (file_.has("tokenizer.ggml.precompiled_charsmap")) {
      ASSIGN_OR_RETURN(const std::vector<int64_t> bytes,
                       file_.integers("tokenizer.ggml.precompiled_charsmap"));
      std::string charsmap;
      for (const int64_t byte : bytes) charsmap += static_cast<char>(byte);
      RETURN_IF_ERROR(parts_->normalizer.add_charsmap(charsmap, false));
    }
    RETURN_IF_ERROR(set_sentencepiece_text());
    std::vector<bool> usable(tokens_.size());
    for (size_t i = 0; i < tokens_.size(); ++i) usable[i] = types_[i] == token_type::kNormal;
    UnigramOptions options;
    options.unknown = parts_->unknown.value_or(kNoToken);
    options.byte_fallback = std::find(types_.begin(), types_.end(), token_type::kByte) != types_.end();
    options.single_precision = true;
    ASSIGN_OR_RETURN(parts_->model, Unigram::create(Vocabulary(usable_), std::move(score), usable, options));
    return {};
  }

  // The file writes "▁word" for a token that begins a word and "word" for one inside; BERT writes "word" and
  // "##word".
  Result<void> make_wordpiece() {
    const Json bert = {{"type", "BertNormalizer"}, {"lowercase", true}};
    ASSIGN_OR_RETURN(parts_->normalizer, Normalizer::from_json(bert));
    ASSIGN_OR_RETURN(parts_->pretokenizer, Pretokenizer::from_json({{"type", "BertPreTokenizer"}}));
    ASSIGN_OR_RETURN(parts_->decoder, TokenDecoder::from_json({{"type", "WordPiece"}, {"cleanup", false}}));
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (types_[i] != token_type::kNormal) continue;
      if (tokens_[i].starts_with(kMark)) {
        tokens_[i].erase(0, kMark.size());
      } else {
        tokens_[i].insert(0, "##");
      }
      usable_[i] = tokens_[i];
    }
    WordPieceOptions options;
    options.unknown = parts_->unknown.value_or(kNoToken);
    parts_->model = std::make_unique<WordPiece>(Vocabulary(usable_), options);
    return {};
  }

  void set_added() {
    std::vector<AddedToken> added;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (types_[i] != token_type::kControl && types_[i] != token_type::kUserDefined &&
          types_[i] != token_type::kUnknown)
        continue;
      AddedToken token;
      token.id = static_cast<TokenId>(i);
      token.content = tokens_[i];
      token.special = types_[i] != token_type::kUserDefined;
      added.push_back(std::move(token));
    }
    parts_->set_added(std::move(added));
  }

  void set_around(std::string_view kind) {
    if (kind == "bert") {
      const auto first = id("cls") ? id("cls") : parts_->bos;
      const auto last = id("seperator") ? id("seperator") : id("separator") ? id("separator") : parts_->eos;
      if (first) parts_->before.push_back(*first);
      if (last) parts_->after.push_back(*last);
      return;
    }
    if (parts_->bos && flag("add_bos_token", kind == "llama")) parts_->before.push_back(*parts_->bos);
    if (parts_->eos && flag("add_eos_token", kind == "t5")) parts_->after.push_back(*parts_->eos);
  }

  const GgufFile& file_;
  std::shared_ptr<TokenizerParts> parts_ = std::make_shared<TokenizerParts>();
  std::vector<std::string> tokens_;  // as written
  std::vector<std::string> usable_;  // what the model may produce; "" for the rest
  std::vector<int64_t> types_;
};

}  // namespace

Result<Tokenizer> Tokenizer::from_gguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(std::shared_ptr<TokenizerParts> parts, GgufTokenizer(file).read());
  return Tokenizer(std::move(parts));
}

}  // namespace flywheel::model
