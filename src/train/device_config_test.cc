#include "train/device_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "train/can_train.h"

namespace flywheel::train {
namespace {

model::Decoder decoder_of(const TrainConfig& config) {
  return model::describe(decoder_config(config.model, 104));
}

std::string refusal(const std::string& yaml, const std::string& device = "gpu") {
  const auto config = parse_config<TrainConfig>(
      "t.yaml", "{device: " + device + ", model: {hidden_size: 64, num_heads: 4}, batch: {sequences: 8}" +
                    (yaml.empty() ? "" : ", ") + yaml + "}");
  const Result<void> can = can_train(config, decoder_of(config));
  return can.ok() ? "" : can.error().message;
}

TEST(DeviceConfig, TakesWhatADeviceCanDo) {
  for (const char* yaml :
       {"", "recompute: full", "recompute: [swiglu]", "optimizer: {type: adam}", "mesh: {data: 4}",
        "mesh: {data: 2}, elastic: {min_data: 1}", "guard: {on_nan: rewind, on_spike: skip}",
        "schedule: {type: wsd}", "optimizer: {groups: [{match: norm, lr_scale: 0}]}"}) {
    EXPECT_EQ(refusal(yaml), "") << yaml;
  }
}

// By key, with what to do instead; with device: cpu each is there.
TEST(DeviceConfig, RefusesTheRestByKey) {
  const std::pair<const char*, const char*> cases[] = {
      {"precision: f32", "precision: f32 is not there on a gpu"},
      {"optimizer: {type: muon}", "optimizer.type: muon is not there on a gpu; use adamw or adam"},
      {"optimizer: {masters: none}", "optimizer.masters: none is not there"},
      {"optimizer: {ema_decay: 0.9}", "optimizer.ema_decay: is not there"},
      {"recompute: [qkv]", "recompute: [qkv] is not there on a gpu"},
      {"recompute: auto", "recompute: auto foretells"},
      {"mesh: {data: 2}, digests: {every_steps: 5}", "digests.every_steps: is not there"},
      {"mesh: {tensor: 2}", "mesh.tensor: 2 is not there on gpus"},
      {"mesh: {pipeline: 2}", "mesh.pipeline: 2 is not there"},
      {"mesh: {context: 2}", "mesh.context: 2 is not there"},
      {"mesh: {data: 2, zero: 1}", "mesh.zero: 1 is not there"},
      {"offload: {optimizer: cpu}", "offload.optimizer: cpu is not there"}};
  for (const auto& [yaml, message] : cases) {
    EXPECT_THAT(refusal(yaml), testing::StartsWith(message)) << yaml;
    EXPECT_EQ(refusal(yaml, "cpu"), "") << yaml;
  }
}

TEST(DeviceConfig, RefusesWidthsThatKernelsDoNotRead) {
  auto config = parse_config<TrainConfig>("t.yaml", "{device: gpu, batch: {length: 16}}");
  const auto message = [&](auto change) {
    ModelConfig model;
    model.hidden_size = 64, model.num_heads = 4, model.num_layers = 1;
    change(model);
    const Result<void> can = can_train(config, model::describe(decoder_config(model, 104)));
    return can.ok() ? std::string() : can.error().message;
  };
  EXPECT_EQ(message([](ModelConfig&) {}), "");
  EXPECT_THAT(
      message([](ModelConfig& m) { m.vocab_size = 107; }),
      testing::StartsWith("model.vocab_size: 107 is no multiple of 8, which a gpu reads at once; set it to "
                          "128"));
  EXPECT_THAT(message([](ModelConfig& m) { m.intermediate_size = 100; }),
              testing::StartsWith("model.intermediate_size: 100"));
  EXPECT_THAT(message([](ModelConfig& m) { m.num_heads = 16; }),
              testing::StartsWith("model.num_heads: heads of 4"));
  EXPECT_THAT(message([](ModelConfig& m) { m.hidden_size = 512, m.num_heads = 2; }),
              testing::StartsWith("model.num_heads: heads of 256"));
  EXPECT_THAT(message([](ModelConfig& m) {
                m.family = "mixtral";
                m.experts = {.count = 4, .per_token = 2};
              }),
              testing::StartsWith("model.family: mixtral has experts"));
}

// A GPU for each worker, and nothing that it cannot do: else the cores.
TEST(DeviceConfig, AutoTakesGpusWhereTheyCanDoAll) {
  const auto chosen = [](const std::string& yaml, int gpus) {
    const auto config = parse_config<TrainConfig>(
        "t.yaml", "{model: {hidden_size: 64, num_heads: 4}, batch: {sequences: 8}, " + yaml + "}");
    return config_name(choose_device(config, decoder_of(config), gpus));
  };
  EXPECT_STREQ(chosen("device: auto", 0), "cpu");
  EXPECT_STREQ(chosen("device: auto", 1), "gpu");
  EXPECT_STREQ(chosen("device: auto, mesh: {data: 2}", 1), "cpu");
  EXPECT_STREQ(chosen("device: auto, mesh: {data: 2}", 2), "gpu");
  EXPECT_STREQ(chosen("device: auto, precision: f32", 1), "cpu");
  EXPECT_STREQ(chosen("device: cpu", 1), "cpu");
  EXPECT_STREQ(chosen("device: gpu", 0), "gpu");
  EXPECT_STREQ(chosen("name: a", 8), "cpu") << "until it is asked for";
}

}  // namespace
}  // namespace flywheel::train
