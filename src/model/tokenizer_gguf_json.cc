#include "model/tokenizer_gguf_json.h"

#include <algorithm>
#include <optional>
#include <set>
#include <tuple>

#include "model/tokenizer_gguf_internal.h"
#include "model/tokenizer_json_parts.h"
#include "model/tokenizer_scores.h"
#include "model/unicode.h"

namespace flywheel::model {
namespace {

const std::string kMark = "\xE2\x96\x81";

// A character that JSON's regular expressions spell with a number is itself in tokenizer.json: the library's
// engine does not know \\U00010400.
std::string with_characters(const std::string& regex) {
  std::string out;
  for (size_t i = 0; i < regex.size(); ++i) {
    const size_t digits = regex[i] != '\\' || i + 1 >= regex.size() ? 0
                          : regex[i + 1] == 'u'                     ? 4
                          : regex[i + 1] == 'U'                     ? 8
                                                                    : 0;
    if (digits == 0 || i + 2 + digits > regex.size()) {
      out += regex[i];
      if (regex[i] == '\\' && i + 1 < regex.size()) out += regex[++i];
      continue;
    }
    const auto c = static_cast<uint32_t>(std::stoul(regex.substr(i + 2, digits), nullptr, 16));
    append_utf8(out, c);
    i += 1 + digits;
  }
  return out;
}

void spell_characters(Json& spec) {
  if (spec.is_object() && spec.contains("Regex")) {
    spec["Regex"] = with_characters(spec["Regex"].get<std::string>());
  } else if (spec.is_structured()) {
    for (Json& part : spec) spell_characters(part);
  }
}

class Exporter {
 public:
  explicit Exporter(const GgufFile& file) : file_(file) {}

  Result<OrderedJson> tokenizer() {
    ASSIGN_OR_RETURN(const std::string_view kind, file_.string("tokenizer.ggml.model"));
    RETURN_IF_ERROR(read());
    OrderedJson json = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
    json["added_tokens"] = added_tokens();
    if (kind == "gpt2") {
      RETURN_IF_ERROR(byte_level(json));
    } else if (kind == "llama") {
      RETURN_IF_ERROR(sentencepiece(json));
    } else {
      return make_error(ErrorCode::kInvalid,
                        "{}: a vocabulary of kind {} is not written as tokenizer.json; gpt2 and "
                        "llama are",
                        file_.path(), kind);
    }
    json["post_processor"] = around(kind == "llama");
    return json;
  }

  Result<OrderedJson> config() {
    RETURN_IF_ERROR(read());
    OrderedJson json = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                        {"clean_up_tokenization_spaces", false}};
    constexpr std::pair<const char*, const char*> kNames[] = {
        {"bos_token", "bos"}, {"eos_token", "eos"}, {"unk_token", "unknown"}, {"pad_token", "padding"}};
    for (const auto& [name, key] : kNames) {
      if (const auto token = id(key)) json[name] = tokens_[*token];
    }
    if (const auto name = file_.string("general.architecture"); name.ok()) {
      const auto length = file_.integer(std::string(*name) + ".context_length");
      if (length.ok()) json["model_max_length"] = *length;
    }
    if (const auto chat = file_.string("tokenizer.chat_template"); chat.ok()) json["chat_template"] = *chat;
    return json;
  }

 private:
  Result<void> read() {
    ASSIGN_OR_RETURN(const std::vector<std::string_view> tokens, file_.strings("tokenizer.ggml.tokens"));
    tokens_.assign(tokens.begin(), tokens.end());
    types_.assign(tokens_.size(), token_type::kNormal);
    if (file_.has("tokenizer.ggml.token_type")) {
      ASSIGN_OR_RETURN(types_, file_.integers("tokenizer.ggml.token_type"));
    }
    if (types_.size() != tokens_.size()) {
      return make_error(ErrorCode::kCorrupt, "{}: tokenizer.ggml.token_type has {} entries for {} tokens",
                        file_.path(), types_.size(), tokens_.size());
    }
    return {};
  }

  std::optional<size_t> id(const std::string& name) const {
    const auto value = file_.integer("tokenizer.ggml." + name + "_token_id");
    if (!value.ok() || *value < 0 || *value >= static_cast<int64_t>(tokens_.size())) return std::nullopt;
    return static_cast<size_t>(*value);
  }

  bool flag(const char* name, bool fallback) const {
    return file_.boolean(std::string("tokenizer.ggml.") + name).value_or(fallback);
  }

  OrderedJson added_tokens() const {
    OrderedJson added = OrderedJson::array();
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (types_[i] != token_type::kControl && types_[i] != token_type::kUserDefined &&
          types_[i] != token_type::kUnknown)
        continue;
      added.push_back(added_token_json(i, tokens_[i], types_[i] != token_type::kUserDefined));
    }
    return added;
  }

  Result<OrderedJson> vocabulary() const {
    std::vector<std::pair<std::string_view, size_t>> entries;
    std::set<std::string_view> seen;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (!seen.insert(tokens_[i]).second) {
        return make_error(ErrorCode::kInvalid,
                          "{}: token {} has the text `{}` of another one, which tokenizer.json "
                          "cannot say",
                          file_.path(), i, tokens_[i]);
      }
      entries.emplace_back(tokens_[i], i);
    }
    OrderedJson::object_t vocab;  // a list inside, so that building it does not look for each key again
    vocab.reserve(entries.size());
    for (const auto& [token, i] : entries) vocab.push_back({std::string(token), i});
    return OrderedJson(std::move(vocab));
  }

  Result<void> byte_level(OrderedJson& json) const {
    ASSIGN_OR_RETURN(GgufPretokenizer pre, gguf_pretokenizer(file_));
    spell_characters(pre.spec);
    json["normalizer"] = pre.nfc ? OrderedJson::object({{"type", "NFC"}}) : OrderedJson();
    json["pre_tokenizer"] = OrderedJson::parse(pre.spec.dump());
    json["decoder"] = {
        {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
    OrderedJson merges = OrderedJson::array();
    ASSIGN_OR_RETURN(const std::vector<std::string_view> lines, file_.strings("tokenizer.ggml.merges"));
    for (const std::string_view line : lines) {
      const size_t space = line.find(' ', 1);
      if (space != std::string_view::npos) merges.push_back({line.substr(0, space), line.substr(space + 1)});
    }
    ASSIGN_OR_RETURN(OrderedJson vocab, vocabulary());
    json["model"] = to_json(
        {.ignore_merges = pre.whole_piece_first, .vocab = std::move(vocab), .merges = std::move(merges)});
    return {};
  }

  Result<void> sentencepiece(OrderedJson& json) const {
    if (flag("remove_extra_whitespaces", false)) {
      return make_error(ErrorCode::kInvalid,
                        "{}: tokenizer.ggml.remove_extra_whitespaces is set, which is not written as "
                        "tokenizer.json",
                        file_.path());
    }
    const bool prefix = flag("add_space_prefix", true);
    OrderedJson steps = OrderedJson::array();
    if (prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kMark}});
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kMark}});
    json["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::move(steps)}};
    json["pre_tokenizer"] = nullptr;
    json["decoder"] = OrderedJson::parse(sentencepiece_decoder(prefix).dump());

    ASSIGN_OR_RETURN(const std::vector<float> floats, file_.floats("tokenizer.ggml.scores"));
    if (floats.size() != tokens_.size()) {
      return make_error(ErrorCode::kCorrupt, "{}: tokenizer.ggml.scores has {} entries for {} tokens",
                        file_.path(), floats.size(), tokens_.size());
    }
    std::vector<std::string> usable = tokens_;
    std::vector<bool> mergeable(tokens_.size());
    for (size_t i = 0; i < tokens_.size(); ++i) {
      mergeable[i] = types_[i] == token_type::kNormal;
      if (types_[i] != token_type::kNormal && types_[i] != token_type::kByte) usable[i].clear();
    }
    ASSIGN_OR_RETURN(std::vector<BpeMerge> merges,
                     merges_of_scores(Vocabulary(usable), {floats.begin(), floats.end()}, mergeable));
    // Ways to write one token have one rank; the library counts lines.
    std::stable_sort(merges.begin(), merges.end(), [](const BpeMerge& a, const BpeMerge& b) {
      return std::tie(a.rank, a.left, a.right) < std::tie(b.rank, b.left, b.right);
    });
    OrderedJson lines = OrderedJson::array();
    for (const BpeMerge& merge : merges) {
      lines.push_back({tokens_[static_cast<size_t>(merge.left)], tokens_[static_cast<size_t>(merge.right)]});
    }
    ASSIGN_OR_RETURN(OrderedJson vocab, vocabulary());
    std::optional<size_t> unknown = id("unknown");
    for (size_t i = 0; i < types_.size() && !unknown; ++i) {
      if (types_[i] == token_type::kUnknown) unknown = i;
    }
    json["model"] = to_json({.unknown = unknown ? OrderedJson(tokens_[*unknown]) : OrderedJson(),
                             .fuse_unknown = true,
                             .byte_fallback = true,
                             .vocab = std::move(vocab),
                             .merges = std::move(lines)});
    return {};
  }

  // BOS and EOS around a text, where the file wants them.
  OrderedJson around(bool bos_by_default) const {
    const auto bos = flag("add_bos_token", bos_by_default) ? id("bos") : std::nullopt;
    const auto eos = flag("add_eos_token", false) ? id("eos") : std::nullopt;
    if (!bos && !eos) return nullptr;
    const auto part = [&](const char* sequence, int type) {
      OrderedJson items = OrderedJson::array();
      const auto special = [&](size_t token) {
        items.push_back({{"SpecialToken", {{"id", tokens_[token]}, {"type_id", type}}}});
      };
      if (bos) special(*bos);
      items.push_back({{"Sequence", {{"id", sequence}, {"type_id", type}}}});
      if (eos) special(*eos);
      return items;
    };
    OrderedJson pair = part("A", 0);
    for (OrderedJson& item : part("B", 1)) pair.push_back(item);
    OrderedJson specials = OrderedJson::object();
    for (const auto& token : {bos, eos}) {
      if (token) {
        specials[tokens_[*token]] = {{"id", tokens_[*token]},
                                     {"ids", OrderedJson::array({*token})},
                                     {"tokens", OrderedJson::array({tokens_[*token]})}};
      }
    }
    return {{"type", "TemplateProcessing"},
            {"single", part("A", 0)},
            {"pair", pair},
            {"special_tokens", specials}};
  }

  const GgufFile& file_;
  std::vector<std::string> tokens_;
  std::vector<int64_t> types_;
};

Result<std::string> dump(const GgufFile& file, const OrderedJson& json) {
  try {
    return json.dump(1) + "\n";
  } catch (const OrderedJson::exception& error) {  // a token that is not UTF-8
    return make_error(ErrorCode::kInvalid, "{}: its vocabulary cannot be written as JSON: {}", file.path(),
                      error.what());
  }
}

}  // namespace

Result<std::string> tokenizer_json_of(const GgufFile& file) {
  ASSIGN_OR_RETURN(const OrderedJson json, Exporter(file).tokenizer());
  return dump(file, json);
}

Result<std::string> tokenizer_config_of(const GgufFile& file) {
  ASSIGN_OR_RETURN(const OrderedJson json, Exporter(file).config());
  return dump(file, json);
}

}  // namespace flywheel::model
