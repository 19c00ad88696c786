// The names of tokenizer.ggml.pre as pre_tokenizers of tokenizer.json.
//
// A model's GGUF says no more than such a name; the patterns are those of the models' own tokenizer.json.
#include <fmt/ranges.h>

#include <algorithm>

#include "model/pretokenizer_pattern.h"
#include "model/tokenizer_gguf_internal.h"

namespace flywheel::model {
namespace {

struct Named {
  std::string name;
  GgufPretokenizer pre;
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

Json byte_level(bool use_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Json sequence(Json steps) {
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

// Each expression cuts what the one before left.
Json splits(const std::vector<std::string>& regexes) {
  Json steps = Json::array();
  for (const std::string& regex : regexes) {
    steps.push_back(
        {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}});
  }
  steps.push_back(byte_level(false));
  return sequence(std::move(steps));
}

std::vector<Named> make_known() {
  std::vector<Named> all;
  const auto add = [&](std::initializer_list<const char*> names, const Json& spec, bool whole = false,
                       bool nfc = false) {
    for (const char* name : names) all.push_back({name, {spec, whole, nfc}});
  };
  const auto by = [](std::string_view pattern) { return splits({std::string(pattern)}); };
  const std::string gpt2(kGpt2Pattern);
  add({"gpt-2", "phi-2", "olmo", "mpt", "jais", "roberta-bpe", "gigachat", "trillion"}, byte_level(true));
  add({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"},
      sequence({{{"type", "Digits"}, {"individual_digits", true}}, byte_level(true)}));
  add({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"}, by(kLlama3Pattern), true);
  add({"dbrx", "smaug-bpe", "chatglm-bpe", "glm4"}, by(kLlama3Pattern));
  add({"stablelm2", "hunyuan", "megrez", "deepseek-r1-qwen"}, by(kQwen2Pattern));
  add({"qwen2"}, by(kQwen2Pattern), false, true);
  add({"gpt-4o", "llama4"}, by(kO200kPattern));
  add({"tekken"}, by(kTekkenPattern), true);
  add({"default"}, splits({R"([\p{P}\$\+<=>\^~\|]+)", gpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}));
  add({"falcon"}, splits({R"([\p{P}\$\+<=>\^~\|`]+)", gpt2, "[0-9][0-9][0-9]"}));
  add({"deepseek-llm"}, splits({"[\r\n]", "\\s?" + kDeepSeekLetters,
                                R"(\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+)",
                                R"(\s+$)", R"([\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+)", R"(\p{N}+)"}));
  add({"deepseek-coder"}, splits({"[\r\n]", R"(\s?\p{L}+)", R"(\s?\p{P}+)",
                                  R"([\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+)", R"(\p{N})"}));
  add({"deepseek-v3"},
      splits(
          {R"(\p{N}{1,3})", R"([\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+)",
           R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}));
  return all;
}

const std::vector<Named>& known() {
  static const std::vector<Named> all = make_known();
  return all;
}

}  // namespace

std::vector<std::string> gguf_pretokenizer_names() {
  std::vector<std::string> names;
  for (const Named& one : known()) names.push_back(one.name);
  return names;
}

Result<GgufPretokenizer> gguf_pretokenizer(const GgufFile& file) {
  const std::string name(file.string("tokenizer.ggml.pre").value_or("default"));
  const auto found =
      std::find_if(known().begin(), known().end(), [&](const Named& one) { return one.name == name; });
  if (found != known().end()) return found->pre;
  return make_error(
      ErrorCode::kInvalid,
      "{}: tokenizer.ggml.pre is {}, which is not known here; put the model's tokenizer.json beside "
      "its weights, or use one of {}",
      file.path(), name, fmt::join(gguf_pretokenizer_names(), ", "));
}

}  // namespace flywheel::model
