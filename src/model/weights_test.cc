// The model behind a GGUF file and behind Hugging Face's folder, through the one interface.
#include "model/weights.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "base/file.h"
#include "model/gguf.h"
#include "model/gguf_writer_for_tests.h"
#include "model/hf_config.h"
#include "model/safetensors.h"

namespace flywheel::model {
namespace {

using kernels::DType;

// A one-layer llama whose every element of q_proj says its place in Hugging Face's order.
std::string tiny_llama(int64_t heads, int64_t kv_heads, int64_t head_dim, bool with_output) {
  const int64_t hidden = heads * head_dim;
  GgufWriterForTests w;
  w.string("general.architecture", "llama");
  w.u32("llama.block_count", 1).u32("llama.embedding_length", static_cast<uint32_t>(hidden));
  w.u32("llama.feed_forward_length", 8).u32("llama.attention.head_count", static_cast<uint32_t>(heads));
  w.u32("llama.attention.head_count_kv", static_cast<uint32_t>(kv_heads)).u32("llama.context_length", 64);
  w.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f).f32("llama.rope.freq_base", 5000);
  w.u32("tokenizer.ggml.eos_token_id", 2);
  // As the converter does: [heads, 2, half, K] -> [heads, half, 2, K].
  const auto permuted = [&](int64_t n) {
    std::vector<float> rows;
    for (int64_t h = 0; h < n; ++h) {
      for (int64_t i = 0; i < head_dim / 2; ++i) {
        for (int64_t j = 0; j < 2; ++j) {
          for (int64_t k = 0; k < hidden; ++k) {
            const int64_t row = h * head_dim + j * (head_dim / 2) + i;
            rows.push_back(static_cast<float>(row * hidden + k));
          }
        }
      }
    }
    return rows;
  };
  w.tensor_f32("token_embd.weight", {11, hidden}, std::vector<float>(static_cast<size_t>(11 * hidden), 0.5f));
  w.tensor_f32("blk.0.attn_q.weight", {hidden, hidden}, permuted(heads));
  w.tensor_f32("blk.0.attn_k.weight", {kv_heads * head_dim, hidden}, permuted(kv_heads));
  if (with_output)
    w.tensor_f32("output.weight", {11, hidden}, std::vector<float>(static_cast<size_t>(11 * hidden), 1));
  return w.finish();
}

TEST(Weights, GgufRowsComeInHuggingFaceOrder) {
  TempFolder folder;
  write_file(folder / "m.gguf", tiny_llama(4, 2, 6, false)).value();
  auto source = open_weights(folder.path()).value();
  for (const char* name :
       {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"}) {
    const std::vector<float> values = to_f32(source->tensor(name).value());
    for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], static_cast<float>(i)) << name;
  }
  EXPECT_EQ(source->tensors().size(), 3u);
  EXPECT_EQ(source->find("model.embed_tokens.weight")->shape, (std::vector<int64_t>{11, 24}));
  EXPECT_EQ(source->find("lm_head.weight"), nullptr);
  const auto missing = source->tensor("lm_head.weight");
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
}

TEST(Weights, GgufConfigSpeaksHuggingFace) {
  const std::string bytes = tiny_llama(4, 2, 6, true);
  const Json config = hf_config_from_gguf(GgufFile::parse(bytes, "m.gguf").value()).value();
  EXPECT_EQ(config["model_type"], "llama");
  EXPECT_EQ(config["hidden_size"], 24);
  EXPECT_EQ(config["head_dim"], 6);
  EXPECT_EQ(config["num_key_value_heads"], 2);
  EXPECT_EQ(config["vocab_size"], 11);
  EXPECT_EQ(config["tie_word_embeddings"], false);
  EXPECT_EQ(config["rope_theta"], 5000);
  EXPECT_EQ(config["eos_token_id"], 2);
  EXPECT_FALSE(config.contains("rope_scaling"));
}

TEST(Weights, GgufRopeDivisorsReachTheConfig) {
  GgufWriterForTests w;
  w.string("general.architecture", "qwen2").u32("qwen2.block_count", 1).u32("qwen2.embedding_length", 8);
  w.u32("qwen2.feed_forward_length", 8).u32("qwen2.attention.head_count", 2).u32("qwen2.vocab_size", 3);
  w.tensor_f32("rope_freqs.weight", {2}, {1.0f, 8.0f});
  const std::string bytes = w.finish();
  const Json config = hf_config_from_gguf(GgufFile::parse(bytes, "m.gguf").value()).value();
  EXPECT_EQ(config["rope_scaling"]["rope_type"], "divisors");
  EXPECT_EQ(config["rope_scaling"]["divisors"], (std::vector<float>{1.0f, 8.0f}));
}

TEST(Weights, WhatCannotBeComputedIsRefusedByName) {
  TempFolder folder;
  GgufWriterForTests moe;
  moe.string("general.architecture", "llama").u32("llama.block_count", 1).u32("llama.embedding_length", 8);
  moe.u32("llama.feed_forward_length", 8).u32("llama.attention.head_count", 2).u32("llama.vocab_size", 3);
  moe.tensor_f32("blk.0.ffn_gate_inp.weight", {2, 8}, std::vector<float>(16));
  write_file(folder / "moe.gguf", moe.finish()).value();
  const auto refused = open_weights(folder / "moe.gguf");
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("blk.0.ffn_gate_inp.weight"), std::string::npos)
      << refused.error().message;

  GgufWriterForTests other;
  other.string("general.architecture", "mamba");
  write_file(folder / "mamba.gguf", other.finish()).value();
  const auto unknown = open_weights(folder / "mamba.gguf");
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message.find("\"mamba\""), std::string::npos);
  EXPECT_EQ(open_weights(folder.path()).error().code, ErrorCode::kNotFound);  // two .gguf: which?
  EXPECT_EQ(open_weights(folder / "absent").error().code, ErrorCode::kNotFound);
}

TEST(Weights, HalfTypesWiden) {
  const uint16_t values[] = {0x3f80, 0xc000};  // 1 and -2 in bf16
  Tensor tensor;
  tensor.dtype = DType::kBF16;
  tensor.shape = {2};
  tensor.bytes = {reinterpret_cast<const uint8_t*>(values), sizeof values};
  EXPECT_EQ(to_f32(tensor), (std::vector<float>{1.0f, -2.0f}));
}

}  // namespace
}  // namespace flywheel::model
