// Tokenizers from the tokenizer.ggml.* metadata of GGUF files.
#include <algorithm>

#include "model/bpe.h"
#include "model/byte_level.h"
#include "model/gguf.h"
#include "model/tokenizer_internal.h"
#include "model/tokenizer_scores.h"
#include "model/unigram.h"
#include "model/wordpiece.h"

namespace flywheel::model {
namespace {

const std::string kMark = "\xE2\x96\x81";

// tokenizer.ggml.token_type
enum TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// How tokenizer.ggml.pre says that text is cut before byte-level BPE.
struct Pre {
  std::string name;
  PatternFn pattern = nullptr;       // or:
  std::vector<std::string> regexes;  // each cuts what the one before left
  bool whole_piece_first = false;
  bool nfc = false;
};

// DeepSeek's first tokenizers name the letters of the bicameral scripts one range at a time.
const std::string kDeepSeekLetters =
    R"([A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF)"
    R"(\u0370-\u0373\u0376\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1\u03A3-\u03F5)"
    R"(\u03F7-\u0481\u048A-\u052F\u0531-\u0556\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA)"
    R"(\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45)"
    R"(\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE\u1FC2)"
    R"(-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102)"
    R"(\u2107\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128\u212A-\u212D\u212F-\u2134\u2139\u213C-)"
    R"(\u213F\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-)"
    R"(\uA66D\uA680-\uA69B\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E\uAB70-\uABBF\uFB00-\uFB06\uFB13-)"
    R"(\uFB17\uFF21-\uFF3A\uFF41-\uFF5A\U00010400-\U0001044F\U000104B0-\U000104D3\U000104D8-\U000104FB)"
    R"(\U00010C80-\U00010CB2\U00010CC0-\U00010CF2\U000118A0-\U000118DF\U0001E900-\U0001E943]+)";

std::vector<Pre> known_pres() {
  const std::string gpt2(kGpt2Pattern);
  const PatternFn by_gpt2 = find_pattern(kGpt2Pattern), by_llama3 = find_pattern(kLlama3Pattern),
                  by_qwen2 = find_pattern(kQwen2Pattern), by_digits = gpt2_pattern_with_single_digits(),
                  by_o200k = find_pattern(kO200kPattern), by_tekken = find_pattern(kTekkenPattern);
  std::vector<Pre> pres;
  const auto add = [&](std::initializer_list<const char*> names, PatternFn pattern, bool whole = false) {
    for (const char* name : names) pres.push_back({name, pattern, {}, whole, false});
  };
  add({"gpt-2", "phi-2", "olmo", "mpt", "jais", "roberta-bpe", "gigachat", "exaone", "trillion"}, by_gpt2);
  add({"smollm", "starcoder", "refact", "command-r", "codeshell"}, by_digits);
  add({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"}, by_llama3, true);
  add({"dbrx", "smaug-bpe", "chatglm-bpe", "glm4"}, by_llama3);
  add({"stablelm2", "hunyuan", "megrez", "deepseek-r1-qwen"}, by_qwen2);
  add({"gpt-4o", "llama4"}, by_o200k);
  add({"tekken"}, by_tekken, true);
  pres.push_back({"qwen2", by_qwen2, {}, false, true});
  pres.push_back({"default", nullptr, {R"([\p{P}\$\+<=>\^~\|]+)", gpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}});
  pres.push_back({"falcon", nullptr, {R"([\p{P}\$\+<=>\^~\|`]+)", gpt2, "[0-9][0-9][0-9]"}});
  pres.push_back({"deepseek-llm",
                  nullptr,
                  {"[\r\n]", "\\s?" + kDeepSeekLetters,
                   R"(\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+)", R"(\s+$)",
                   R"([\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+)", R"(\p{N}+)"}});
  pres.push_back({"deepseek-coder",
                  nullptr,
                  {"[\r\n]", R"(\s?\p{L}+)", R"(\s?\p{P}+)", R"([\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+)",
                   R"(\p{N})"}});
  pres.push_back(
      {"deepseek-v3",
       nullptr,
       {R"(\p{N}{1,3})", R"([\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+)",
        R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}});
  return pres;
}

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
    types_.assign(tokens_.size(), kNormal);
    if (file_.has("tokenizer.ggml.token_type")) {
      ASSIGN_OR_RETURN(types_, file_.integers("tokenizer.ggml.token_type"));
      if (types_.size() != tokens_.size()) return wrong_count("tokenizer.ggml.token_type", types_.size());
    }
    // What plain text may become: not control tokens, nor what is looked for before the model runs.
    usable_ = tokens_;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (types_[i] != kNormal && types_[i] != kByte) usable_[i].clear();
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
      if (types_[i] == kUnknown) parts_->unknown = static_cast<TokenId>(i);
    }
  }

  Result<void> make_byte_level() {
    const std::string name(file_.string("tokenizer.ggml.pre").value_or("default"));
    const std::vector<Pre> pres = known_pres();
    const auto pre = std::find_if(pres.begin(), pres.end(), [&](const Pre& p) { return p.name == name; });
    if (pre == pres.end()) {
      return make_error(ErrorCode::kInvalid, "{}: tokenizer.ggml.pre is {}, which is not known here",
                        file_.path(), name);
    }
    if (pre->pattern) {
      parts_->pretokenizer = Pretokenizer::of_pattern(pre->pattern);
    } else {
      Json steps = Json::array();
      for (const std::string& regex : pre->regexes) {
        steps.push_back({{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}});
      }
      steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
      ASSIGN_OR_RETURN(parts_->pretokenizer,
                       Pretokenizer::from_json({{"type", "Sequence"}, {"pretokenizers", steps}}));
    }
    if (pre->nfc) {
      ASSIGN_OR_RETURN(parts_->normalizer, Normalizer::from_json({{"type", "NFC"}}));
    }
    ASSIGN_OR_RETURN(parts_->decoder, Decoder::from_json({{"type", "ByteLevel"}}));

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
    options.whole_piece_first = pre->whole_piece_first;
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
    ASSIGN_OR_RETURN(parts_->decoder, Decoder::from_json(sentencepiece_decoder(prefix)));
    return {};
  }

  Result<void> make_scored_bpe() {
    ASSIGN_OR_RETURN(const std::vector<double> score, scores());
    RETURN_IF_ERROR(set_sentencepiece_text());
    std::vector<bool> mergeable(tokens_.size());
    for (size_t i = 0; i < tokens_.size(); ++i) mergeable[i] = types_[i] == kNormal;
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
    for (size_t i = 0; i < tokens_.size(); ++i) usable[i] = types_[i] == kNormal;
    UnigramOptions options;
    options.unknown = parts_->unknown.value_or(kNoToken);
    options.byte_fallback = std::find(types_.begin(), types_.end(), kByte) != types_.end();
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
    ASSIGN_OR_RETURN(parts_->decoder, Decoder::from_json({{"type", "WordPiece"}, {"cleanup", false}}));
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (types_[i] != kNormal) continue;
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
      if (types_[i] != kControl && types_[i] != kUserDefined && types_[i] != kUnknown) continue;
      AddedToken token;
      token.id = static_cast<TokenId>(i);
      token.content = tokens_[i];
      token.special = types_[i] != kUserDefined;
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
