#include "model/hf_config.h"

#include <map>

#include "base/file.h"

namespace flywheel::model {
namespace {

struct Architecture {
  const char* model_type;
  const char* class_name;
};
const std::map<std::string, Architecture, std::less<>> kArchitectures = {
    {"llama", {"llama", "LlamaForCausalLM"}},
    {"qwen2", {"qwen2", "Qwen2ForCausalLM"}},
    {"qwen3", {"qwen3", "Qwen3ForCausalLM"}},
};

// Copies metadata keys below "<architecture>." into a config.
class Translator {
 public:
  Translator(const GgufFile& file, std::string_view architecture)
      : file_(file), prefix_(std::string(architecture) + ".") {}

  bool has(const char* key) const { return file_.has(prefix_ + key); }
  Result<int64_t> integer(const char* key) const { return file_.integer(prefix_ + key); }
  Result<double> number(const char* key) const { return file_.number(prefix_ + key); }
  Result<std::string_view> string(const char* key) const { return file_.string(prefix_ + key); }

  Result<void> require_integer(Json& config, const char* hf_key, const char* key) const {
    ASSIGN_OR_RETURN(const int64_t value, integer(key));
    config[hf_key] = value;
    return {};
  }
  Result<void> copy_integer(Json& config, const char* hf_key, const char* key) const {
    return has(key) ? require_integer(config, hf_key, key) : Result<void>();
  }
  Result<void> copy_number(Json& config, const char* hf_key, const char* key) const {
    if (!has(key)) return {};
    ASSIGN_OR_RETURN(const double value, number(key));
    config[hf_key] = value;
    return {};
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

Result<Json> rope_scaling(const GgufFile& file, const Translator& from) {
  if (const GgufTensor* divisors = file.find_tensor("rope_freqs.weight")) {
    Tensor tensor;
    tensor.dtype = divisors->dtype;
    tensor.shape = divisors->shape;
    tensor.bytes = divisors->bytes;
    return Json{{"rope_type", "divisors"}, {"divisors", to_f32(tensor)}};
  }
  if (!from.has("rope.scaling.type")) return Json();
  ASSIGN_OR_RETURN(const std::string_view type, from.string("rope.scaling.type"));
  if (type == "none") return Json();
  Json scaling = {{"rope_type", type}};
  RETURN_IF_ERROR(from.copy_number(scaling, "factor", "rope.scaling.factor"));
  RETURN_IF_ERROR(
      from.copy_integer(scaling, "original_max_position_embeddings", "rope.scaling.original_context_length"));
  return scaling;
}

Result<void> add_token_ids(const GgufFile& file, Json& config) {
  for (const auto& [hf_key, key] : {std::pair{"bos_token_id", "tokenizer.ggml.bos_token_id"},
                                    std::pair{"eos_token_id", "tokenizer.ggml.eos_token_id"}}) {
    if (!file.has(key)) continue;
    ASSIGN_OR_RETURN(config[hf_key], file.integer(key));
  }
  return {};
}

}  // namespace

Result<Json> read_hf_config(const std::string& folder) {
  const std::string path = (folder.empty() ? "." : folder) + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, read_file(path));
  auto config = parse_json(text);
  if (!config.ok()) return make_error(ErrorCode::kInvalid, "{}: {}", path, config.error().message);
  if (!config->is_object()) return make_error(ErrorCode::kInvalid, "{}: not a JSON object", path);
  return config;
}

Result<Json> hf_config_from_gguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view name, file.string("general.architecture"));
  const auto architecture = kArchitectures.find(name);
  if (architecture == kArchitectures.end()) {
    return make_error(ErrorCode::kInvalid,
                      "{}: general.architecture is \"{}\"; llama, qwen2 and qwen3 are supported", file.path(),
                      name);
  }
  const Translator from(file, name);
  Json config = {{"architectures", {architecture->second.class_name}},
                 {"model_type", architecture->second.model_type}};
  RETURN_IF_ERROR(from.require_integer(config, "num_hidden_layers", "block_count"));
  RETURN_IF_ERROR(from.require_integer(config, "hidden_size", "embedding_length"));
  RETURN_IF_ERROR(from.require_integer(config, "intermediate_size", "feed_forward_length"));
  RETURN_IF_ERROR(from.require_integer(config, "num_attention_heads", "attention.head_count"));
  RETURN_IF_ERROR(from.copy_integer(config, "num_key_value_heads", "attention.head_count_kv"));
  RETURN_IF_ERROR(from.copy_integer(config, "head_dim", "attention.key_length"));
  RETURN_IF_ERROR(from.copy_integer(config, "max_position_embeddings", "context_length"));
  RETURN_IF_ERROR(from.copy_number(config, "rms_norm_eps", "attention.layer_norm_rms_epsilon"));
  RETURN_IF_ERROR(from.copy_number(config, "rope_theta", "rope.freq_base"));
  if (from.has("attention.sliding_window")) {
    RETURN_IF_ERROR(from.require_integer(config, "sliding_window", "attention.sliding_window"));
    config["use_sliding_window"] = true;
  }
  const int64_t hidden = config["hidden_size"].get<int64_t>(),
                heads = config["num_attention_heads"].get<int64_t>();
  if (heads < 1 || hidden < 1) {
    return make_error(ErrorCode::kInvalid, "{}: {} heads in an embedding of {}", file.path(), heads, hidden);
  }
  if (!config.contains("head_dim")) config["head_dim"] = hidden / heads;
  if (from.has("rope.dimension_count")) {
    ASSIGN_OR_RETURN(const int64_t rotated, from.integer("rope.dimension_count"));
    if (rotated != config["head_dim"].get<int64_t>()) {
      return make_error(ErrorCode::kInvalid,
                        "{}: rope.dimension_count {} rotates a part of heads of {}: not supported",
                        file.path(), rotated, config["head_dim"].get<int64_t>());
    }
  }
  if (const GgufTensor* embedding = file.find_tensor("token_embd.weight")) {
    config["vocab_size"] = embedding->shape.front();
  } else {
    RETURN_IF_ERROR(from.require_integer(config, "vocab_size", "vocab_size"));
  }
  config["tie_word_embeddings"] = file.find_tensor("output.weight") == nullptr;
  config["hidden_act"] = "silu";
  config["attention_bias"] = file.find_tensor("blk.0.attn_q.bias") != nullptr;
  config["mlp_bias"] = file.find_tensor("blk.0.ffn_up.bias") != nullptr;
  ASSIGN_OR_RETURN(Json scaling, rope_scaling(file, from));
  if (!scaling.is_null()) config["rope_scaling"] = std::move(scaling);
  RETURN_IF_ERROR(add_token_ids(file, config));
  return config;
}

}  // namespace flywheel::model
