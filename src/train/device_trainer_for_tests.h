// For tests of the device's trainer: small models of each family that it runs, whose widths cross no edge of
// a tile evenly, and batches of them.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "base/philox.h"
#include "train/device_trainer.h"
#include "train/trainer.h"

namespace flywheel::train {

inline constexpr int64_t kTestVocabulary = 104, kTestSequences = 4, kTestLength = 40;

struct SmallModel {
  const char* name;
  model::DecoderConfig decoder;
};

// Llama with grouped heads; Qwen3, whose heads have norms; Qwen2, whose q, k and v have biases; Mistral,
// which sees a window; each with and without tied embeddings.
inline std::vector<SmallModel> small_models() {
  ModelConfig config;
  config.hidden_size = 64, config.intermediate_size = 96, config.num_layers = 2;
  config.num_heads = 4, config.num_kv_heads = 2, config.max_positions = kTestLength;
  const auto decoder = [&](const char* family, bool tied) {
    config.family = family, config.tied_embeddings = tied;
    return decoder_config(config, kTestVocabulary);
  };
  model::DecoderConfig window = decoder("mistral", true);
  window.sliding_window = 11;
  return {{"llama, tied", decoder("llama", true)},
          {"llama, untied", decoder("llama", false)},
          {"qwen3, tied", decoder("qwen3", true)},
          {"qwen2, untied", decoder("qwen2", false)},
          {"mistral, window", window}};
}

// Samples of several lengths in each sequence where `packed`, the first tokens of each a prompt.
inline data::Batch small_batch(int64_t step, bool packed = false) {
  data::Batch batch{.sequences = kTestSequences, .length = kTestLength};
  Philox rng(11, static_cast<uint64_t>(step));
  for (int64_t i = 0; i < batch.sequences * (batch.length + 1); ++i)
    batch.tokens.push_back(static_cast<int32_t>(rng.below(kTestVocabulary)));
  if (!packed) return batch;
  for (int64_t s = 0; s < batch.sequences; ++s) {
    int32_t begin = 0;
    for (int32_t t = 0; t < static_cast<int32_t>(batch.length); ++t) {
      if (t > begin && rng.below(9) == 0) begin = t;
      batch.begins.push_back(begin);
      batch.counts.push_back(t - begin >= 2 ? 1 : 0);
    }
  }
  return batch;
}

inline TrainConfig small_config(const std::string& yaml = "{}") {
  auto config = parse_config<TrainConfig>("t.yaml", yaml);
  config.batch.sequences = kTestSequences, config.batch.length = kTestLength, config.steps = 20;
  return config;
}

// A trainer of either kind, of one rank, with the layout that it borrows.
template <typename T>
struct SmallTrainer;

template <>
struct SmallTrainer<Trainer> {
  SmallTrainer(const TrainConfig& config, const model::DecoderConfig& decoder, ThreadPool& pool)
      : layout(make_layout(config, model::describe(decoder)).value()), trainer(config, layout, {}, pool) {
    trainer.initialize(3);
  }
  StepResult step(bool packed = false) {
    return trainer.step(small_batch(trainer.next_batch(), packed), {}).value();
  }
  Layout layout;
  Trainer trainer;
};

inline TrainConfig on_gpu(TrainConfig config) {
  config.device = DeviceChoice::kGpu;
  return config;
}

template <>
struct SmallTrainer<DeviceTrainer> {
  SmallTrainer(const TrainConfig& config, const model::DecoderConfig& decoder, ThreadPool& pool,
               kernels::Device& device)
      : layout(make_layout(on_gpu(config), model::describe(decoder)).value()),
        owned(DeviceTrainer::open(on_gpu(config), layout, {}, pool, device).value()),
        trainer(*owned) {
    trainer.initialize(3);
  }
  StepResult step(bool packed = false) {
    return trainer.step(small_batch(trainer.next_batch(), packed), {}).value();
  }
  Layout layout;
  std::unique_ptr<DeviceTrainer> owned;
  DeviceTrainer& trainer;
};

using OnCpu = SmallTrainer<Trainer>;
using OnDevice = SmallTrainer<DeviceTrainer>;

}  // namespace flywheel::train
