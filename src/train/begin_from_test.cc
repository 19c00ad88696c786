// What a run cannot begin with is said by the key that must change; what it can is left in peace.
#include "train/begin_from.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "train/state_for_tests.h"

namespace flywheel::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TrainConfig config_of(const std::string& yaml) {
  return parse_config<TrainConfig>("test", yaml);
}

// "" where it is none.
template <typename F>
std::string refusal(const F& check) {
  try {
    check();
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

std::string refused_model(const std::string& yaml, const model::DecoderConfig& has) {
  return refusal([&] { check_model_keys(config_of(yaml).model, has, "model.from base:1"); });
}

TEST(BeginFrom, AKeyOfTheModelThatIsSetMustBeTheModelsOwn) {
  const model::DecoderConfig has = small_decoder().config;
  EXPECT_EQ(refused_model("{}", has), "");
  EXPECT_EQ(refused_model("{model: {from: base, family: qwen3, hidden_size: 64, intermediate_size: 1024, "
                          "num_layers: 2, num_heads: 16, num_kv_heads: 4, vocab_size: 128, "
                          "max_positions: 64, rope_theta: 10000, tied_embeddings: true}}",
                          has),
            "");
  struct Case {
    const char *key, *value, *its;
  };
  for (const Case& c :
       {Case{"family", "qwen2", "qwen3"}, Case{"hidden_size", "128", "64"},
        Case{"intermediate_size", "512", "1024"}, Case{"num_layers", "9", "2"}, Case{"num_heads", "4", "16"},
        Case{"num_kv_heads", "2", "4"}, Case{"vocab_size", "100", "128"}, Case{"max_positions", "32", "64"},
        Case{"rope_theta", "500000", "10000"}, Case{"tied_embeddings", "false", "true"}}) {
    EXPECT_THAT(refused_model(fmt::format("{{model: {{{}: {}}}}}", c.key, c.value), has),
                HasSubstr(fmt::format("model.{}: {} is set, and the model of model.from base:1 has {}", c.key,
                                      c.value, c.its)));
  }
  EXPECT_THAT(refused_model("{model: {experts: {count: 4}}}", has),
              HasSubstr("model.experts.count: 4 is set, and the model of model.from base:1 has 0"));
}

// A model that a run made goes on with the keys that it was made of.
TEST(BeginFrom, EachFamilysModelHasTheKeysThatItWasMadeOf) {
  const std::string sizes =
      "hidden_size: 64, num_layers: 4, num_heads: 4, num_kv_heads: 2, vocab_size: 128, max_positions: 64, "
      "rope_theta: 12345.678, tied_embeddings: false";
  for (const char* keys :
       {"family: llama, intermediate_size: 96", "family: mixtral, experts: {count: 4, per_token: 1}",
        "family: qwen2_moe, experts: {count: 4, intermediate_size: 32, shared_size: 48, every: 2}",
        "family: qwen3_moe, experts: {count: 4, intermediate_size: 32, normalised: false}",
        ("family: dots1, experts: {count: 4, intermediate_size: 32, shared_size: 64, scale: 1.7, "
         "dense_layers: 1}")}) {
    const std::string yaml = fmt::format("{{model: {{{}, {}}}}}", sizes, keys);
    const Json json = model::decoder_config_to_hf(decoder_config(config_of(yaml).model, 128), "float32");
    const auto has = model::decoder_config_from_hf(json);
    ASSERT_TRUE(has.ok()) << has.error().message;
    EXPECT_EQ(refused_model(yaml, *has), "");
  }
}

// Of step 12, by a run with this config.
void write_checkpoint_of(const std::string& folder, const TrainConfig& config) {
  const auto state = std::make_shared<TrainerSnapshot>(random_state(config.optimizer, small_decoder()));
  const auto written = write_checkpoint({.folder = folder}, source_of(config), 1.5, state);
  ASSERT_TRUE(written.ok()) << written.error().message;
}

std::string refused_checkpoint(const std::string& yaml, const std::string& folder) {
  return refusal([&] { check_checkpoint(config_of(yaml), folder, "mini:1"); });
}

TEST(BeginFrom, TheOptimizerMustKeepWhatTheCheckpointHas) {
  struct Case {
    std::string theirs, ours, refusal;  // "": none
  };
  const std::string lion =
      "optimizer.type: lion keeps another state than adamw, with which mini:1 was trained";
  for (const Case& c : {
           Case{"{type: adamw}", "{type: adamw, lr: 0.5, weight_decay: 0}", ""},
           Case{"{type: adamw}", "{type: adam}", ""},  // both moments, as Adam has them
           Case{"{type: adamw}", "{type: lion}", lion},
           Case{"{type: adamw}", "{type: lion, ema_decay: 0.9}", lion},
           Case{"{type: adamw}", "{type: muon}", "optimizer.type: muon keeps"},
           Case{"{type: adamw}", "{type: adamw_8bit}", "optimizer.type: adamw_8bit keeps"},
           Case{"{type: adamw}", "{ema_decay: 0.9}", "optimizer.ema_decay: 0.9 goes on with an average"},
           Case{"{ema_decay: 0.9}", "{type: adamw}", "mini:1 has one, of 0.9; set it to 0.9"},
           Case{"{ema_decay: 0.9}", "{ema_decay: 0.99}", ""},
           Case{"{type: sgd}", "{type: sgd, sgd: {momentum: 0.5}}", ""},
           Case{"{type: sgd}", "{type: sgd, sgd: {momentum: 0}}", "optimizer.sgd.momentum: 0 keeps"},
           Case{"{type: adafactor}", "{type: adafactor, adafactor: {beta1: 0.5}}",
                "optimizer.adafactor.beta1: 0.5 keeps"},
           Case{"{type: muon}", "{type: muon, muon: {adamw: norm}}", "optimizer.muon.adamw: \"norm\" keeps"},
       }) {
    SCOPED_TRACE(c.theirs + " -> " + c.ours);
    const TempFolder folder;
    write_checkpoint_of(folder / "step", config_of("{optimizer: " + c.theirs + "}"));
    const std::string said = refused_checkpoint("{optimizer: " + c.ours + "}", folder / "step");
    if (c.refusal.empty()) {
      EXPECT_EQ(said, "");
    } else {
      EXPECT_THAT(said, AllOf(HasSubstr(c.refusal), HasSubstr("flywheel export mini:1 --out")));
    }
  }
}

TEST(BeginFrom, StepsMustBeLeftToDo) {
  const TempFolder folder;
  write_checkpoint_of(folder / "step", config_of("{}"));
  EXPECT_EQ(refused_checkpoint("{steps: 13}", folder / "step"), "");
  for (const int steps : {12, 7}) {
    EXPECT_THAT(refused_checkpoint(fmt::format("{{steps: {}}}", steps), folder / "step"),
                HasSubstr(fmt::format("steps: {} is not above the 12 steps that mini:1 has done", steps)));
  }
}

TEST(BeginFrom, AnAdaptersCheckpointIsNoneOfAllWeights) {
  const TempFolder folder;
  write_checkpoint_of(folder / "step", config_of("{}"));
  const std::string path = folder / "step/config.yaml";
  ASSERT_TRUE(
      write_file(path, dump_config(config_of("{adapter: {rank: 4}, model: {from: /base}}")) + "\n").ok());
  EXPECT_THAT(refused_checkpoint("{}", folder / "step"),
              AllOf(HasSubstr("checkpoint.from: mini:1 is of an adapter"), HasSubstr("--merged")));
}

// One trainer.state, as it was before there were shards: what it has is known, not by which config.
TEST(BeginFrom, AnOlderCheckpointIsComparedByItsState) {
  const TempFolder folder;
  write_checkpoint_of(folder / "step", config_of("{}"));
  ASSERT_TRUE(write_file(folder / "step/trainer.state",
                         random_state(config_of("{}").optimizer, small_decoder()).bytes())
                  .ok());
  ASSERT_TRUE(remove_all(folder / "step/config.yaml").ok());
  EXPECT_EQ(refused_checkpoint("{}", folder / "step"), "");
  EXPECT_THAT(refused_checkpoint("{optimizer: {type: lion}}", folder / "step"),
              HasSubstr("optimizer: the checkpoint's state is of another model or optimizer"));
}

TEST(BeginFrom, WhatIsNoCheckpointIsSaidByKey) {
  const TempFolder folder;
  ASSERT_TRUE(write_file(folder / "checkpoint.json", "{\"version\": 9}").ok());
  EXPECT_THAT(refused_checkpoint("{}", folder.path()), HasSubstr("checkpoint.from: "));
}

}  // namespace
}  // namespace flywheel::train
