// Where a model lies in a device's memory: its layers, its weights, its activations.
#include "train/device_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "train/config.h"

namespace flywheel::train {
namespace {

model::Decoder decoder_of_family(const char* family, bool tied) {
  ModelConfig config;
  config.family = family, config.tied_embeddings = tied;
  config.hidden_size = 64, config.intermediate_size = 96, config.num_layers = 3;
  config.num_heads = 4, config.num_kv_heads = 2;
  return model::describe(decoder_config(config, 104));
}

TEST(DeviceLayers, AreReadOffTheStepsOfTheDecoder) {
  const model::Decoder decoder = decoder_of_family("qwen3", false);
  const DeviceLayers layers = device_layers(decoder).value();
  const auto name = [&](int weight) {
    return weight < 0 ? std::string() : decoder.weights[static_cast<size_t>(weight)].name;
  };
  ASSERT_EQ(layers.layers.size(), 3u);
  const DeviceLayer& layer = layers.layers[1];
  EXPECT_EQ(name(layers.embedding), "model.embed_tokens.weight");
  EXPECT_EQ(name(layer.attention_norm), "model.layers.1.input_layernorm.weight");
  EXPECT_EQ(name(layer.qkv[0]), "model.layers.1.self_attn.q_proj.weight");
  EXPECT_EQ(name(layer.qkv[2]), "model.layers.1.self_attn.v_proj.weight");
  EXPECT_EQ(layer.qkv_bias[0], -1);
  EXPECT_EQ(name(layer.q_norm), "model.layers.1.self_attn.q_norm.weight");
  EXPECT_EQ(name(layer.k_norm), "model.layers.1.self_attn.k_norm.weight");
  EXPECT_EQ(name(layer.output), "model.layers.1.self_attn.o_proj.weight");
  EXPECT_EQ(name(layer.mlp_norm), "model.layers.1.post_attention_layernorm.weight");
  EXPECT_EQ(name(layer.gate_up[1]), "model.layers.1.mlp.up_proj.weight");
  EXPECT_EQ(name(layer.down), "model.layers.1.mlp.down_proj.weight");
  EXPECT_EQ(name(layers.final_norm), "model.norm.weight");
  EXPECT_EQ(name(layers.head), "lm_head.weight");
  const DeviceLayers tied = device_layers(decoder_of_family("qwen2", true)).value();
  EXPECT_EQ(tied.head, tied.embedding);
  EXPECT_GE(tied.layers[0].qkv_bias[1], 0);
}

TEST(DeviceLayers, OtherStepsAreRefusedByName) {
  model::Decoder decoder = decoder_of_family("llama", true);
  const auto swiglu = std::ranges::find(decoder.steps, model::Op::kSwiglu, &model::Step::op);
  swiglu->op = model::Op::kGatedAdd;
  EXPECT_THAT(device_layers(decoder).error().message, testing::HasSubstr("a step gated_add in layer 0"));
}

// Each weight once, none over another; what is one product lies together, and so does what decays.
TEST(DeviceWeights, LieInGroupsThatAreUpdatedAlike) {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    const model::Decoder decoder = decoder_of_family(family, true);
    const DeviceLayers layers = device_layers(decoder).value();
    const DeviceWeights weights(decoder, layers, {});
    std::vector<std::pair<int64_t, int64_t>> places;
    for (size_t i = 0; i < weights.flat().size(); ++i)
      places.emplace_back(weights.offset(static_cast<int>(i)), weights.flat()[i].count);
    std::ranges::sort(places);
    for (size_t i = 0; i + 1 < places.size(); ++i)
      EXPECT_LE(places[i].first + places[i].second, places[i + 1].first) << family;
    EXPECT_LE(places.back().first + places.back().second, weights.count());
    for (const DeviceLayer& layer : layers.layers) {
      const auto follows = [&](int a, int b) {
        return weights.offset(b) == weights.offset(a) + weights.flat()[static_cast<size_t>(a)].count;
      };
      EXPECT_TRUE(follows(layer.qkv[0], layer.qkv[1]) && follows(layer.qkv[1], layer.qkv[2]));
      EXPECT_TRUE(follows(layer.gate_up[0], layer.gate_up[1]));
      EXPECT_TRUE(layer.qkv_bias[0] < 0 || follows(layer.qkv_bias[0], layer.qkv_bias[1]));
      EXPECT_EQ(weights.offset(layer.qkv[0]) % 64, 0);
    }
    ASSERT_EQ(weights.segments().size(), 2u) << "matrices decay, the rest does not";
    EXPECT_EQ(weights.segments()[0].begin, 0);
    EXPECT_EQ(weights.segments()[0].end, weights.segments()[1].begin);
    EXPECT_EQ(weights.segments()[1].end, weights.count());
    EXPECT_EQ(weights.segments()[0].terms.weight_decay, 0.1);
    EXPECT_EQ(weights.segments()[1].terms.weight_decay, 0);
  }
}

// Of a model of Llama 3.2's 1B sizes by hand: D 2048, W 3072, Q 2048, F 8192, 16 layers; of each token and
// layer 2 (D + D + W + Q + D + D + 3 F) + 4 (32 + 2) bytes.
TEST(DevicePlan, CountsEveryByteOfALayer) {
  ModelConfig config;
  config.hidden_size = 2048, config.intermediate_size = 8192, config.num_layers = 16;
  config.num_heads = 32, config.num_kv_heads = 8;
  const model::Decoder decoder = model::describe(decoder_config(config, 128256));
  const DeviceLayers layers = device_layers(decoder).value();
  const DeviceWeights weights(decoder, layers, {});
  const DeviceBatchSize batch{.sequences = 8, .length = 2048};
  const int64_t T = batch.rows();
  const DevicePlan none(decoder, weights, batch, Recompute::kNone);
  EXPECT_EQ(none.state_bytes(), 18 * weights.count());
  EXPECT_EQ(none.bytes(), none.state_bytes() + none.activation_bytes());
  const int64_t a_layer = none.layers()[1].in - none.layers()[0].in;
  EXPECT_EQ(a_layer, T * (2 * (4 * 2048 + 3072 + 2048 + 3 * 8192) + 4 * (32 + 2)));
  for (size_t i = 1; i < none.layers().size(); ++i)
    EXPECT_EQ(none.layers()[i].in - none.layers()[i - 1].in, a_layer);

  const auto saved = [&](Recompute recompute) {
    return none.bytes() - DevicePlan(decoder, weights, batch, recompute).bytes();
  };
  EXPECT_EQ(saved({Recomputed::kNorm}), 15 * T * 2 * 2 * 2048);
  EXPECT_EQ(saved({Recomputed::kSwiglu}), 15 * T * 2 * 8192);
  EXPECT_EQ(saved(Recompute::kSelective), 15 * T * 2 * (2 * 2048 + 8192));
  EXPECT_EQ(saved(Recompute::kFull), 15 * (a_layer - T * 2 * 2048));
  // Logits are in pieces, in the place of a layer's backward.
  EXPECT_EQ(none.logits_rows(), 1024);
  EXPECT_THAT(none.text(), testing::HasSubstr("of activations of 16384 tokens"));
}

TEST(DevicePlan, MemoryGrowsWithTheBatchAlone) {
  const model::Decoder decoder = decoder_of_family("llama", true);
  const DeviceWeights weights(decoder, device_layers(decoder).value(), {});
  int64_t before = 0;
  for (const int64_t sequences : {1, 2, 4, 64}) {
    const DevicePlan plan(decoder, weights, {.sequences = sequences, .length = 40}, Recompute::kNone);
    EXPECT_GT(plan.activation_bytes(), before);
    EXPECT_EQ(plan.state_bytes(), 18 * weights.count());
    EXPECT_LE(plan.logits_rows(), sequences * 40);
    before = plan.activation_bytes();
  }
}

}  // namespace
}  // namespace flywheel::train
