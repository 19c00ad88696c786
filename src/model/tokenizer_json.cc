// Tokenizers from tokenizer.json, the format of the `tokenizers` library, with tokenizer_config.json beside
// it.
#include <algorithm>
#include <unordered_map>

#include "model/bpe.h"
#include "model/byte_level.h"
#include "model/tokenizer_internal.h"
#include "model/unigram.h"
#include "model/wordpiece.h"

namespace flywheel::model {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 24;

using Ids = std::unordered_map<std::string_view, TokenId>;

class JsonTokenizer {
 public:
  explicit JsonTokenizer(const Json& root) : root_(root), spec_(root.at("model")) {}

  Result<std::shared_ptr<TokenizerParts>> read() {
    ASSIGN_OR_RETURN(parts_->normalizer, Normalizer::from_json(root_.value("normalizer", Json())));
    ASSIGN_OR_RETURN(parts_->pretokenizer, Pretokenizer::from_json(root_.value("pre_tokenizer", Json())));
    ASSIGN_OR_RETURN(parts_->decoder, TokenDecoder::from_json(root_.value("decoder", Json())));
    RETURN_IF_ERROR(read_tokens());
    RETURN_IF_ERROR(read_added());
    RETURN_IF_ERROR(read_model());
    parts_->tokens = Vocabulary(tokens_);
    parts_->set_added(std::move(added_));
    RETURN_IF_ERROR(read_post_processor(root_.value("post_processor", Json())));
    return parts_;
  }

 private:
  Result<void> put(const std::string& token, int64_t id) {
    if (id < 0 || id >= kMostTokens) {
      return make_error(ErrorCode::kInvalid, "token `{}` has id {}; ids go from 0 to {}", token, id,
                        kMostTokens - 1);
    }
    if (static_cast<size_t>(id) >= tokens_.size()) tokens_.resize(static_cast<size_t>(id) + 1);
    tokens_[static_cast<size_t>(id)] = token;
    return {};
  }

  Result<void> read_tokens() {
    const Json& vocab = spec_.at("vocab");
    if (vocab.is_object()) {
      for (const auto& [token, id] : vocab.items()) {
        ids_.emplace(token, static_cast<TokenId>(id.get<int64_t>()));
        RETURN_IF_ERROR(put(token, id.get<int64_t>()));
      }
      return {};
    }
    for (const Json& entry : vocab) {
      const auto& token = entry.at(0).get_ref<const std::string&>();
      ids_.emplace(token, static_cast<TokenId>(tokens_.size()));
      scores_.push_back(entry.at(1).get<double>());
      RETURN_IF_ERROR(put(token, static_cast<int64_t>(tokens_.size())));
    }
    return {};
  }

  Result<void> read_added() {
    model_tokens_ = tokens_;
    for (const Json& entry : root_.value("added_tokens", Json::array())) {
      AddedToken token;
      token.content = entry.at("content").get<std::string>();
      const auto id = entry.at("id").get<int64_t>();
      token.special = entry.value("special", false);
      token.normalized = entry.value("normalized", !token.special);
      token.single_word = entry.value("single_word", false);
      token.strip_left = entry.value("lstrip", false);
      token.strip_right = entry.value("rstrip", false);
      RETURN_IF_ERROR(put(token.content, id));
      token.id = static_cast<TokenId>(id);
      // Plain text must not become a special token by way of the model.
      if (token.special && static_cast<size_t>(id) < model_tokens_.size()) {
        model_tokens_[static_cast<size_t>(id)].clear();
      }
      added_.push_back(std::move(token));
    }
    return {};
  }

  std::optional<TokenId> id_of(std::string_view token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }

  Result<void> read_model() {
    // Files from before the types were written out: Unigram has a list, WordPiece no merges.
    const std::string type = spec_.value("type", std::string(spec_.at("vocab").is_array() ? "Unigram"
                                                             : spec_.contains("merges")   ? "BPE"
                                                                                          : "WordPiece"));
    const Json unknown = spec_.value("unk_token", Json());
    if (unknown.is_string()) parts_->unknown = id_of(unknown.get_ref<const std::string&>());
    if (parts_->pretokenizer.byte_level() && type != "BPE") {
      return make_error(ErrorCode::kInvalid, "a {} model behind a ByteLevel pre_tokenizer is not supported",
                        type);
    }
    if (type == "BPE") return read_bpe();
    if (type == "Unigram") return read_unigram();
    if (type == "WordPiece") {
      WordPieceOptions options;
      options.unknown = parts_->unknown.value_or(kNoToken);
      options.continuing_prefix = spec_.value("continuing_subword_prefix", "##");
      options.longest_word = spec_.value("max_input_chars_per_word", size_t{100});
      parts_->model = std::make_unique<WordPiece>(Vocabulary(model_tokens_), options);
      return {};
    }
    return make_error(ErrorCode::kInvalid, "model type {} is not supported", type);
  }

  std::string string_or_empty(const char* key) const {
    const Json value = spec_.value(key, Json());
    return value.is_string() ? value.get<std::string>() : "";
  }

  Result<void> read_bpe() {
    BpeOptions options;
    options.byte_level = parts_->pretokenizer.byte_level();
    options.whole_piece_first = spec_.value("ignore_merges", false);
    options.byte_fallback = spec_.value("byte_fallback", false);
    options.fuse_unknown = spec_.value("fuse_unk", false);
    options.unknown = parts_->unknown.value_or(kNoToken);
    options.continuing_prefix = string_or_empty("continuing_subword_prefix");
    options.end_suffix = string_or_empty("end_of_word_suffix");
    ASSIGN_OR_RETURN(const std::vector<BpeMerge> merges, read_merges(options.continuing_prefix.size()));
    if (options.byte_level) {
      for (std::string& token : model_tokens_) token = bytes_of_byte_level(token).value_or("");
    }
    ASSIGN_OR_RETURN(parts_->model, Bpe::create(Vocabulary(model_tokens_), merges, options));
    return {};
  }

  Result<std::vector<BpeMerge>> read_merges(size_t prefix_size) {
    std::vector<BpeMerge> merges;
    std::string joined;
    for (const Json& entry : spec_.at("merges")) {
      std::string_view left, right;
      if (entry.is_string()) {
        const std::string_view line = entry.get_ref<const std::string&>();
        const size_t space = line.find(' ');
        left = line.substr(0, space);
        right = space == std::string_view::npos ? "" : line.substr(space + 1);
      } else {
        left = entry.at(0).get_ref<const std::string&>();
        right = entry.at(1).get_ref<const std::string&>();
      }
      joined = left;
      joined += right.substr(std::min(prefix_size, right.size()));
      const auto a = id_of(left), b = id_of(right), result = id_of(joined);
      if (!a || !b || !result) {
        return make_error(ErrorCode::kInvalid, "merge {} (`{}` `{}`): `{}` is not in the vocabulary",
                          merges.size(), left, right,
                          !a   ? left
                          : !b ? right
                               : std::string_view(joined));
      }
      merges.push_back({*a, *b, *result, static_cast<uint32_t>(merges.size())});
    }
    return merges;
  }

  Result<void> read_unigram() {
    UnigramOptions options;
    options.byte_fallback = spec_.value("byte_fallback", false);
    const Json unknown = spec_.value("unk_id", Json());
    if (unknown.is_number_integer()) {
      const auto id = unknown.get<int64_t>();
      if (id < 0 || id >= static_cast<int64_t>(scores_.size())) {
        return make_error(ErrorCode::kInvalid, "unk_id {} of {} tokens", id, scores_.size());
      }
      options.unknown = static_cast<TokenId>(id);
      parts_->unknown = options.unknown;
    }
    if (scores_.size() != model_tokens_.size()) {
      return make_error(ErrorCode::kInvalid, "a Unigram vocabulary is a list of [token, score]");
    }
    std::vector<bool> usable(model_tokens_.size());
    for (size_t i = 0; i < usable.size(); ++i) usable[i] = !model_tokens_[i].empty();
    ASSIGN_OR_RETURN(parts_->model, Unigram::create(Vocabulary(model_tokens_), scores_, usable, options));
    return {};
  }

  // All of them put fixed tokens before and after a text.
  Result<void> read_post_processor(const Json& spec) {
    if (spec.is_null()) return {};
    const std::string type = spec.at("type");
    if (type == "Sequence") {
      for (const Json& part : spec.at("processors")) RETURN_IF_ERROR(read_post_processor(part));
    } else if (type == "BertProcessing" || type == "RobertaProcessing") {
      parts_->before.push_back(spec.at("cls").at(1).get<TokenId>());
      parts_->after.push_back(spec.at("sep").at(1).get<TokenId>());
    } else if (type == "TemplateProcessing") {
      bool after = false;
      for (const Json& item : spec.at("single")) {
        if (item.contains("Sequence")) {
          after = true;
          continue;
        }
        const auto& name = item.at("SpecialToken").at("id").get_ref<const std::string&>();
        for (const Json& id : spec.at("special_tokens").at(name).at("ids")) {
          (after ? parts_->after : parts_->before).push_back(id.get<TokenId>());
        }
      }
    } else if (type != "ByteLevel") {
      return make_error(ErrorCode::kInvalid, "post_processor: type {} is not supported", type);
    }
    for (const auto* list : {&parts_->before, &parts_->after}) {
      for (const TokenId id : *list) {
        if (id < 0 || id >= parts_->tokens.size()) {
          return make_error(ErrorCode::kInvalid, "post_processor: there is no token {}", id);
        }
      }
    }
    return {};
  }

  const Json& root_;
  const Json& spec_;
  std::shared_ptr<TokenizerParts> parts_ = std::make_shared<TokenizerParts>();
  std::vector<std::string> tokens_, model_tokens_;
  std::vector<double> scores_;
  std::vector<AddedToken> added_;
  Ids ids_;
};

// "bos_token": "<s>" or {"content": "<s>", ...}
std::optional<TokenId> configured(const Json& config, const char* key, const Vocabulary& tokens) {
  Json value = config.value(key, Json());
  if (value.is_object()) value = value.value("content", Json());
  if (!value.is_string()) return std::nullopt;
  const TokenId id = tokens.find(value.get_ref<const std::string&>());
  return id == kNoToken ? std::nullopt : std::optional(id);
}

void read_config(const Json& config, TokenizerParts& parts) {
  parts.bos = configured(config, "bos_token", parts.tokens);
  parts.eos = configured(config, "eos_token", parts.tokens);
  parts.pad = configured(config, "pad_token", parts.tokens);
  if (!parts.unknown) parts.unknown = configured(config, "unk_token", parts.tokens);
  const Json chat = config.value("chat_template", Json());
  if (chat.is_string()) parts.chat_template = chat;
  if (!chat.is_array()) return;
  for (const Json& entry : chat) {  // several, by name
    if (entry.value("name", "") == "default") parts.chat_template = entry.value("template", "");
  }
}

}  // namespace

Result<Tokenizer> Tokenizer::from_json(std::string_view tokenizer_json, std::string_view config) {
  ASSIGN_OR_RETURN(const Json root, parse_json(tokenizer_json));
  try {
    ASSIGN_OR_RETURN(const std::shared_ptr<TokenizerParts> parts, JsonTokenizer(root).read());
    if (!config.empty()) {
      ASSIGN_OR_RETURN(const Json settings, parse_json(config));
      read_config(settings, *parts);
    }
    parts->find_end_tokens();
    return Tokenizer(parts);
  } catch (const Json::exception& error) {
    return make_error(ErrorCode::kInvalid, "tokenizer.json: {}", error.what());
  }
}

}  // namespace flywheel::model
