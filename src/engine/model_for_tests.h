// Models for the engine's tests: tiny ones with random weights in any dtype, and stories260K.
#pragma once

#include <cmath>
#include <cstring>
#include <map>

#include "base/env.h"
#include "base/file.h"
#include "base/philox.h"
#include "kernels/dtype.h"
#include "model/open_model.h"

namespace flywheel::engine {

// Tensors in memory.
class MemorySource : public model::WeightSource {
 public:
  void add(const std::string& name, std::vector<int64_t> shape, kernels::DType dtype,
           const std::vector<float>& values) {
    model::Tensor tensor;
    tensor.name = name, tensor.shape = std::move(shape), tensor.dtype = dtype;
    std::vector<uint8_t>& bytes = bytes_[name];
    bytes.resize(static_cast<size_t>(tensor.rows() * kernels::row_bytes(dtype, tensor.cols())));
    kernels::from_f32(bytes.data(), values.data(), dtype, static_cast<int64_t>(values.size()));
    tensor.bytes = bytes;
    by_name_[name] = tensor;
    infos_.clear();
    for (const auto& [key, value] : by_name_) infos_.push_back(value);
  }
  const std::string& path() const override { return path_; }
  const std::vector<model::TensorInfo>& tensors() const override { return infos_; }
  Result<model::Tensor> tensor(const std::string& name) const override {
    const auto it = by_name_.find(name);
    if (it == by_name_.end()) return make_error(ErrorCode::kNotFound, "no tensor {}", name);
    return it->second;
  }
  Result<Json> config() const override { return Json::object(); }

 private:
  std::string path_ = "memory";
  std::map<std::string, std::vector<uint8_t>> bytes_;
  std::map<std::string, model::Tensor> by_name_;
  std::vector<model::TensorInfo> infos_;
};

inline model::DecoderConfig tiny_config() {
  model::DecoderConfig config;
  config.family = "qwen3";
  config.vocab_size = 97;
  config.hidden_size = 48;
  config.intermediate_size = 80;
  config.num_layers = 3;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.max_positions = 512;
  config.qk_norm = config.qkv_bias = true;
  return config;
}

inline model::OpenModel random_model(const model::DecoderConfig& config, kernels::DType dtype,
                                     uint64_t seed) {
  auto source = std::make_shared<MemorySource>();
  model::OpenModel model;
  model.name = "random";
  model.decoder = model::describe(config);
  Philox random(seed);
  for (const model::WeightInfo& weight : model.decoder.weights) {
    int64_t count = 1;
    for (const int64_t dim : weight.shape) count *= dim;
    std::vector<float> values(static_cast<size_t>(count));
    const float scale = 1.5f / std::sqrt(static_cast<float>(weight.shape.back()));
    for (float& value : values) {
      value = weight.kind == model::WeightKind::kNorm   ? 1 + 0.2f * random.normal()
              : weight.kind == model::WeightKind::kBias ? 0.1f * random.normal()
                                                        : scale * random.normal();
    }
    const bool matrix = weight.kind == model::WeightKind::kMatrix;
    source->add(weight.name, weight.shape, matrix ? dtype : kernels::DType::kF32, values);
  }
  model.source = source;
  return model;
}

// The folder with stories260K, "" where the test data is not there.
inline std::string stories_folder() {
  const std::string folder = env::test_data() + "/models/stories260K";
  return !env::test_data().empty() && path_exists(folder) ? folder : "";
}

// llama2.c's version 0 file: seven i32 of header, then f32 weights, all layers of one kind together. Its q
// and k rows are in pair order; ours in halves.
inline model::OpenModel stories_model() {
  const std::string bytes = read_file(stories_folder() + "/stories260K.bin").value();
  int32_t header[7];
  std::memcpy(header, bytes.data(), sizeof header);
  const int64_t dim = header[0], hidden = header[1], layers = header[2], heads = header[3],
                kv_heads = header[4];
  model::DecoderConfig c;
  c.hidden_size = dim, c.intermediate_size = hidden, c.num_layers = layers, c.num_heads = heads;
  c.num_kv_heads = kv_heads, c.vocab_size = std::abs(header[5]), c.max_positions = header[6];
  c.head_dim = dim / heads, c.tied_embeddings = header[5] > 0;
  model::OpenModel model;
  model.name = "stories260K";
  model.decoder = model::describe(c);
  auto source = std::make_shared<MemorySource>();
  size_t at = sizeof header;
  const auto take = [&](int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    std::memcpy(values.data(), bytes.data() + at, values.size() * sizeof(float));
    at += values.size() * sizeof(float);
    return values;
  };
  const auto halves = [&](const std::vector<float>& rows, int64_t row_heads) {
    std::vector<float> out(rows.size());
    const int64_t per_head = c.head_dim, half = per_head / 2;
    for (int64_t r = 0; r < row_heads * per_head; ++r) {
      const int64_t head = r / per_head, i = r % per_head / 2, j = r % 2;
      std::memcpy(&out[static_cast<size_t>((head * per_head + j * half + i) * dim)],
                  &rows[static_cast<size_t>(r * dim)], static_cast<size_t>(dim) * sizeof(float));
    }
    return out;
  };
  const auto all_layers = [&](const std::string& module, std::vector<int64_t> shape,
                              int64_t reorder_heads = 0) {
    for (int64_t layer = 0; layer < layers; ++layer) {
      std::vector<float> values = take(shape.size() == 2 ? shape[0] * shape[1] : shape[0]);
      if (reorder_heads > 0) values = halves(values, reorder_heads);
      source->add("model.layers." + std::to_string(layer) + "." + module + ".weight", shape,
                  kernels::DType::kF32, values);
    }
  };
  source->add("model.embed_tokens.weight", {c.vocab_size, dim}, kernels::DType::kF32,
              take(c.vocab_size * dim));
  all_layers("input_layernorm", {dim});
  all_layers("self_attn.q_proj", {c.q_width(), dim}, heads);
  all_layers("self_attn.k_proj", {c.kv_width(), dim}, kv_heads);
  all_layers("self_attn.v_proj", {c.kv_width(), dim});
  all_layers("self_attn.o_proj", {dim, c.q_width()});
  all_layers("post_attention_layernorm", {dim});
  all_layers("mlp.gate_proj", {hidden, dim});
  all_layers("mlp.down_proj", {dim, hidden});
  all_layers("mlp.up_proj", {hidden, dim});
  source->add("model.norm.weight", {dim}, kernels::DType::kF32, take(dim));
  if (!c.tied_embeddings) {
    take(2 * c.max_positions * c.head_dim / 2);  // cos and sin tables
    source->add("lm_head.weight", {c.vocab_size, dim}, kernels::DType::kF32, take(c.vocab_size * dim));
  }
  model.source = source;
  return model;
}

// tok512.bin: i32 longest, then for each token f32 score, i32 length, bytes.
inline std::vector<std::string> stories_vocabulary() {
  const std::string bytes = read_file(stories_folder() + "/tok512.bin").value();
  std::vector<std::string> tokens;
  for (size_t at = 4; at + 8 <= bytes.size();) {
    int32_t length;
    std::memcpy(&length, bytes.data() + at + 4, 4);
    tokens.push_back(bytes.substr(at + 8, static_cast<size_t>(length)));
    at += 8 + static_cast<size_t>(length);
  }
  return tokens;
}

}  // namespace flywheel::engine
