// A GGUF file as a WeightSource: Hugging Face's names, and attention rows in Hugging Face's order.
#include <algorithm>
#include <charconv>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>

#include "model/gguf.h"
#include "model/hf_config.h"

namespace flywheel::model {
namespace {

constexpr std::pair<std::string_view, std::string_view> kTopNames[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
    {"rope_freqs.weight", "rope_freqs.weight"},  // also in config(), as divisors
};
// Below blk.N. and model.layers.N.; ".weight" or ".bias" follows.
constexpr std::pair<std::string_view, std::string_view> kLayerNames[] = {
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"ffn_norm", "post_attention_layernorm"},
};

std::optional<std::string> hf_name(std::string_view name) {
  for (const auto& [gguf, hf] : kTopNames) {
    if (name == gguf) return std::string(hf);
  }
  if (!name.starts_with("blk.")) return std::nullopt;
  const size_t dot = name.find('.', 4), last = name.rfind('.');
  if (dot == std::string_view::npos || last <= dot) return std::nullopt;
  const std::string_view layer = name.substr(4, dot - 4), part = name.substr(dot + 1, last - dot - 1),
                         suffix = name.substr(last);
  if (layer.empty() || layer.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  if (suffix != ".weight" && suffix != ".bias") return std::nullopt;
  for (const auto& [gguf, hf] : kLayerNames) {
    if (part == gguf) return fmt::format("model.layers.{}.{}{}", layer, hf, suffix);
  }
  return std::nullopt;
}

class GgufWeights : public WeightSource {
 public:
  explicit GgufWeights(GgufFile file) : file_(std::move(file)) {}

  Result<void> index() {
    ASSIGN_OR_RETURN(config_, hf_config_from_gguf(file_));
    // Converters reorder q and k of this architecture alone (its rotation pairs neighbours; ours, halves).
    const bool reordered = config_["model_type"] == "llama";
    for (const GgufTensor& tensor : file_.tensors()) {
      const auto name = hf_name(tensor.name);
      if (!name) {
        return make_error(
            ErrorCode::kInvalid,
            "{}: tensor {} at byte {} has no place in a {} decoder as computed here; is it a mixture of "
            "experts or another variant? Take a dense one",
            file_.path(), tensor.name, tensor.offset, config_["model_type"].get<std::string>());
      }
      TensorInfo info{*name, tensor.dtype, tensor.shape};
      Entry entry{&tensor};
      if (reordered && name->find(".self_attn.q_proj.") != std::string::npos) {
        entry.heads = config_["num_attention_heads"].get<int64_t>();
      } else if (reordered && name->find(".self_attn.k_proj.") != std::string::npos) {
        entry.heads = config_.value("num_key_value_heads", config_["num_attention_heads"].get<int64_t>());
      }
      if (entry.heads != 0 && (entry.heads < 0 || tensor.shape.front() % (2 * entry.heads) != 0)) {
        return make_error(ErrorCode::kCorrupt,
                          "{}: tensor {} has {} rows, which do not make {} heads of pairs", file_.path(),
                          tensor.name, tensor.shape.front(), entry.heads);
      }
      entries_.emplace(*name, std::move(entry));
      tensors_.push_back(std::move(info));
    }
    std::sort(tensors_.begin(), tensors_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    return {};
  }

  const std::string& path() const override { return file_.path(); }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  Result<Json> config() const override { return config_; }

  Result<Tensor> tensor(const std::string& name) const override {
    const auto it = entries_.find(name);
    if (it == entries_.end()) return make_error(ErrorCode::kNotFound, "{}: no tensor {}", path(), name);
    const Entry& entry = it->second;
    Tensor tensor;
    tensor.name = name;
    tensor.dtype = entry.tensor->dtype;
    tensor.shape = entry.tensor->shape;
    tensor.bytes = entry.heads == 0 ? entry.tensor->bytes : halves_bytes(entry);
    return tensor;
  }

 private:
  struct Entry {
    const GgufTensor* tensor;
    int64_t heads = 0;  // not 0: rows are in the file's pair order
    mutable std::vector<uint8_t> reordered;
  };

  // Row 2i+j of a head in the file is row j*half+i here; whole rows move, so quantized blocks stay as they
  // are.
  std::span<const uint8_t> halves_bytes(const Entry& entry) const {
    const std::lock_guard lock(mutex_);
    if (!entry.reordered.empty()) return entry.reordered;
    const auto rows = static_cast<uint64_t>(entry.tensor->shape.front());
    const uint64_t row_bytes = entry.tensor->bytes.size() / rows;
    const uint64_t per_head = rows / static_cast<uint64_t>(entry.heads), half = per_head / 2;
    entry.reordered.resize(entry.tensor->bytes.size());
    for (uint64_t r = 0; r < rows; ++r) {
      const uint64_t head = r / per_head, i = r % per_head / 2, j = r % 2;
      std::memcpy(entry.reordered.data() + (head * per_head + j * half + i) * row_bytes,
                  entry.tensor->bytes.data() + r * row_bytes, row_bytes);
    }
    return entry.reordered;
  }

  GgufFile file_;
  Json config_;
  std::map<std::string, Entry> entries_;
  std::vector<TensorInfo> tensors_;
  mutable std::mutex mutex_;
};

}  // namespace

Result<std::unique_ptr<WeightSource>> open_gguf_weights(const std::string& path) {
  ASSIGN_OR_RETURN(GgufFile file, GgufFile::open(path));
  auto source = std::make_unique<GgufWeights>(std::move(file));
  RETURN_IF_ERROR(source->index());
  return std::unique_ptr<WeightSource>(std::move(source));
}

}  // namespace flywheel::model
