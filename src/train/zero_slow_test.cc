// ZeRO: every stage gives the bits of stage 0 where sums can be in the same order, state goes from any stage
// and mesh to any other, and a step that fails has changed nothing. Against one worker: mesh_slow_test.cc.
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <barrier>
#include <cstdio>
#include <random>
#include <utility>

#include "base/file.h"
#include "data/shards.h"
#include "train/digests.h"
#include "train/mesh_test_ranks.h"

namespace flywheel::train {
namespace {

constexpr OptimizerType kElementwise[] = {OptimizerType::kAdamW, OptimizerType::kAdam, OptimizerType::kSgd,
                                          OptimizerType::kLion, OptimizerType::kAdamW8Bit};

int64_t pick(Philox& rng, std::initializer_list<int64_t> from) {
  return from.begin()[rng.below(from.size())];
}

TrainConfig random_config(Philox& rng) {
  TrainConfig config;
  config.steps = 4;
  config.seed = rng.next_u32();
  do {
    config.mesh = {.data = pick(rng, {2, 3, 4}),
                   .context = pick(rng, {1, 1, 2}),
                   .tensor = pick(rng, {1, 1, 2}),
                   .pipeline = pick(rng, {1, 1, 2})};
  } while (config.mesh.workers() > 8);
  config.mesh.sequence_parallel = config.mesh.tensor > 1 && rng.below(2) == 0;
  if (config.mesh.pipeline > 1) {
    config.mesh.schedule =
        std::array{ScheduleKind::kGPipe, ScheduleKind::kOneForwardOneBackward, ScheduleKind::kInterleaved,
                   ScheduleKind::kZeroBubbleH1, ScheduleKind::kZeroBubbleV}[rng.below(5)];
  }
  config.mesh.bucket_values = pick(rng, {100, 10'000, 25'000'000});
  config.mesh.overlap = rng.below(4) > 0;
  const int64_t microbatches = config.mesh.pipeline * pick(rng, {1, 2});
  config.batch = {.sequences = config.mesh.data * microbatches, .length = 24, .micro_sequences = 1};
  config.recompute = random_recompute(rng);
  config.precision =
      std::array{Precision::kF32, Precision::kBF16, Precision::kFP16, Precision::kFP8}[rng.below(4)];
  config.loss_scale.initial_power = 10;
  const auto& types = ConfigEnum<OptimizerType>::names;
  config.optimizer.type = types[rng.below(types.size())].second;
  config.optimizer.clip_norm = 0.1;  // every step clips
  config.optimizer.ema_decay = rng.below(2) == 0 ? 0.9 : 0;
  return config;
}

TEST(Zero, EveryStageGivesTheSameBits) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  for (int trial = 0; trial < cases_to_draw(1, 10); ++trial) {
    TrainConfig config = random_config(rng);
    const model::Decoder decoder = random_decoder(rng, true);
    SCOPED_TRACE(fmt::format(
        "data={} context={} tensor={} pipeline={} {} recompute={} buckets of {}, optimizer {}, "
        "precision {}, {} sequences",
        config.mesh.data, config.mesh.context, config.mesh.tensor, config.mesh.pipeline,
        config_name(config.mesh.schedule), config_name(config.recompute), config.mesh.bucket_values,
        config_name(config.optimizer.type), config_name(config.precision), config.batch.sequences));
    std::array<Trace, 4> traces;
    for (int stage = 0; stage <= 3; ++stage) {
      config.mesh.zero = stage;
      traces[static_cast<size_t>(stage)] = train_on_mesh(config, decoder);
    }
    const auto same = [&](size_t a, size_t b) {
      EXPECT_EQ(traces[a].losses, traces[b].losses) << "stages " << a << " and " << b;
      EXPECT_EQ(traces[a].norms, traces[b].norms) << "stages " << a << " and " << b;
      EXPECT_EQ(traces[a].whole.sha256(), traces[b].whole.sha256()) << "stages " << a << " and " << b;
    };
    ASSERT_EQ(traces[0].losses.size(), 4u);
    same(0, 1), same(2, 3);
    if (config.batch.sequences == config.mesh.data) same(0, 3);
    if (testing::Test::HasFailure()) return;
  }
}

// Without f32 masters, on meshes that cut matrices by columns and by stages: what chance rounds is the same.
TEST(Zero, WithoutMastersEveryStageGivesTheSameBits) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  for (const auto& [tensor, pipeline] : {std::pair(1, 1), {2, 1}, {1, 2}}) {
    const model::Decoder decoder = random_decoder(rng, true);
    TrainConfig config;
    config.steps = 4, config.seed = rng.next_u32();
    config.optimizer.type = kElementwise[rng.below(std::size(kElementwise))];
    config.optimizer.ema_decay = 0.9;
    config.optimizer.masters = Masters::kNone;
    config.mesh = {
        .data = 2, .tensor = tensor, .pipeline = pipeline, .bucket_values = pick(rng, {100, 10'000})};
    config.batch = {.sequences = 2 * pipeline, .length = 24, .micro_sequences = 1};
    SCOPED_TRACE(fmt::format("tensor={} pipeline={} optimizer {}", tensor, pipeline,
                             config_name(config.optimizer.type)));
    std::array<Trace, 4> traces;
    for (int stage = 0; stage <= 3; ++stage) {
      config.mesh.zero = stage;
      traces[static_cast<size_t>(stage)] = train_on_mesh(config, decoder);
    }
    ASSERT_EQ(traces[0].losses.size(), 4u);
    EXPECT_EQ(traces[0].losses, traces[1].losses);
    EXPECT_EQ(traces[0].whole.sha256(), traces[1].whole.sha256());
    EXPECT_EQ(traces[2].whole.sha256(), traces[3].whole.sha256());
    if (pipeline == 1) {  // one microbatch
      EXPECT_EQ(traces[0].whole.sha256(), traces[3].whole.sha256());
    }
    for (const FlatWeight& w : flat_weights(decoder)) {
      for (int64_t i = w.offset; w.matrix && i < w.offset + w.count; ++i) {
        const float value = traces[0].whole.weights[static_cast<size_t>(i)];
        ASSERT_EQ(kernels::bits_of(value) & 0xffff, 0u) << w.name << " is in bf16";
      }
    }
    // The second half from the first one's state, as after a loss.
    config.mesh.zero = 1;
    EXPECT_EQ(train_on_mesh(config, decoder, &traces[0].half).whole.sha256(), traces[0].whole.sha256());
    if (testing::Test::HasFailure()) return;
  }
}

// Whole matrices are put together at one of their ranks: the bits are those of stage 0, and the losses those
// of one worker, as near as mesh_slow_test.cc has them (Muon rounds its products to bf16). The embedding is
// Muon's too, and cut unevenly over the tensor axis.
TEST(Zero, MethodsThatNeedWholeMatricesGiveTheSameBits) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  for (const OptimizerType type : {OptimizerType::kMuon, OptimizerType::kAdafactor}) {
    const bool one_of_them = cases_to_draw(1, 3) == 1;
    const uint64_t taken = 1 + rng.below(3);
    for (uint64_t mesh = 0;
         const auto& [data, tensor, pipeline] : {std::array<int64_t, 3>{3, 1, 1}, {2, 2, 1}, {2, 1, 2}}) {
      if (++mesh != taken && one_of_them) continue;
      TrainConfig config;
      config.steps = 4, config.seed = rng.next_u32();
      config.precision = Precision::kF32;
      config.optimizer = {.type = type, .lr = 5e-4, .min_lr = 1e-4, .warmup_steps = 3, .epsilon = 1e-5};
      config.optimizer.muon.adamw = "";
      config.optimizer.adafactor.beta1 = rng.below(2) == 0 ? 0.9 : 0;
      config.optimizer.adafactor.epsilon1 = 1e-10;
      config.optimizer.ema_decay = rng.below(2) == 0 ? 0.9 : 0;
      config.mesh = {.data = data, .tensor = tensor, .pipeline = pipeline};
      config.mesh.bucket_values = pick(rng, {100, 10'000, 25'000'000});
      config.batch = {.sequences = data * pipeline, .length = 24, .micro_sequences = 1};
      const model::Decoder decoder = random_decoder(rng, false);
      SCOPED_TRACE(fmt::format("{} data={} tensor={} pipeline={} buckets of {}", config_name(type), data,
                               tensor, pipeline, config.mesh.bucket_values));
      std::array<Trace, 4> traces;
      for (int stage = 0; stage <= 3; ++stage) {
        config.mesh.zero = stage;
        traces[static_cast<size_t>(stage)] = train_on_mesh(config, decoder);
      }
      ASSERT_EQ(traces[0].losses.size(), 4u);
      const auto same = [&](size_t a, size_t b) {
        EXPECT_EQ(traces[a].losses, traces[b].losses) << "stages " << a << " and " << b;
        EXPECT_EQ(traces[a].norms, traces[b].norms) << "stages " << a << " and " << b;
        EXPECT_EQ(traces[a].whole.sha256(), traces[b].whole.sha256()) << "stages " << a << " and " << b;
      };
      same(0, 1), same(2, 3);
      if (pipeline == 1) same(0, 3);  // one microbatch
      const double allowed = type == OptimizerType::kMuon ? 1e-3 : 1e-5;
      TrainConfig alone = config;
      alone.mesh = {};
      const Layout layout = make_layout(alone, decoder).value();
      const Trace one = train(alone, layout, 0, {});
      EXPECT_LT(worst(traces[1].losses, one.losses), allowed) << differences(traces[1].losses, one.losses);
      // From a stage's state half way on one worker, and the other way round.
      const std::vector<double> rest(one.losses.begin() + 2, one.losses.end());
      const Trace moved = train(alone, layout, 0, {}, &traces[2].half);
      EXPECT_LT(worst(moved.losses, rest), allowed) << differences(moved.losses, rest);
      config.mesh.zero = 1;
      const Trace dealt = train_on_mesh(config, decoder, &one.half);
      EXPECT_LT(worst(dealt.losses, rest), allowed) << differences(dealt.losses, rest);
      if (testing::Test::HasFailure()) return;
    }
  }
}

// Half way the state moves to another mesh and stage.
TEST(Zero, StateGoesOnAtAnyStageOfAnyMesh) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  for (int trial = 0; trial < cases_to_draw(2, 10); ++trial) {
    TrainConfig config = random_config(rng);
    config.precision = Precision::kF32;
    config.optimizer.type = OptimizerType::kAdamW;
    config.optimizer.epsilon = 1e-5;
    config.mesh = {.data = 4, .zero = pick(rng, {0, 1, 2, 3})};
    config.batch = {.sequences = 12, .length = 24};
    const model::Decoder decoder = random_decoder(rng, false);
    const Trace undisturbed = train_on_mesh(config, decoder);
    const std::vector<double> rest(undisturbed.losses.begin() + 2, undisturbed.losses.end());
    TrainConfig other = config;
    other.mesh.zero = (config.mesh.zero + pick(rng, {1, 2, 3})) % 4;
    const Trace same_mesh = train_on_mesh(other, decoder, &undisturbed.half);
    EXPECT_EQ(same_mesh.losses, rest) << "from stage " << config.mesh.zero << " to " << other.mesh.zero;
    EXPECT_EQ(same_mesh.whole.sha256(), undisturbed.whole.sha256());
    other.mesh = {.data = pick(rng, {1, 2, 3}),
                  .context = pick(rng, {1, 2}),
                  .tensor = pick(rng, {1, 2}),
                  .zero = pick(rng, {1, 2, 3})};
    const Trace other_mesh = train_on_mesh(other, decoder, &undisturbed.half);
    EXPECT_LT(worst(other_mesh.losses, rest), 1e-5) << differences(other_mesh.losses, rest);
  }
}

// Groups of two and their copies: another order of the same sum.
TEST(Zero, GroupsThatShareGiveTheLossesOfAll) {
  Philox rng(std::random_device{}());
  const model::Decoder decoder = random_decoder(rng, false);
  TrainConfig config = random_config(rng);
  config.precision = Precision::kF32;
  config.optimizer.type = OptimizerType::kAdamW;
  config.optimizer.epsilon = 1e-5;
  config.batch = {.sequences = 8, .length = 24, .micro_sequences = 1};
  config.mesh = {.data = 4, .tensor = 2};
  const Trace whole = train_on_mesh(config, decoder);
  std::vector<std::string> digests;
  for (const int64_t stage : {1, 2, 3}) {
    config.mesh.zero = stage, config.mesh.zero_group = 2;
    const Trace groups = train_on_mesh(config, decoder);
    EXPECT_LT(worst(groups.losses, whole.losses), 1e-5) << differences(groups.losses, whole.losses);
    EXPECT_LT(worst(groups.norms, whole.norms), 1e-5) << differences(groups.norms, whole.norms);
    digests.push_back(groups.whole.sha256());
  }
  EXPECT_EQ(digests[1], digests[2]);
  config.mesh.zero_group = 4;  // all of them: one group
  EXPECT_EQ(make_layout(config, decoder)->shape.to_string(), "data=4 tensor=2");
}

// Before a step and after it, also where a rank has no sample of its own.
TEST(Zero, EvaluatesAsStage0Does) {
  Philox rng(std::random_device{}());
  const model::Decoder decoder = random_decoder(rng, false);
  const TempFolder folder;
  auto writer = data::ShardWriter::create(folder / "set", {.vocab_size = 101}).value();
  for (int document = 0; document < 10; ++document) {
    std::vector<int32_t> tokens(50);
    for (int32_t& token : tokens) token = static_cast<int32_t>(rng.below(101));
    ASSERT_TRUE(writer.add(tokens).ok());
  }
  ASSERT_TRUE(writer.seal().ok());
  const data::TokenShards shards = data::TokenShards::open(folder / "set").value();
  std::vector<double> whole;  // where neither layers nor sequences are cut
  for (const auto& [pipeline, context] : {std::pair(1, 1), {2, 1}, {1, 2}}) {
    std::array<std::vector<double>, 4> losses;
    for (int64_t stage = 0; stage <= 3; ++stage) {
      TrainConfig config = random_config(rng);
      config.seed = 7;
      config.precision = Precision::kF32;
      config.optimizer = {};
      config.mesh = {.data = 3, .context = context, .pipeline = pipeline, .zero = stage};
      config.batch = {.sequences = 3, .length = 24};
      const Layout layout = make_layout(config, decoder).value();
      const data::Sampler sampler(shards, {.seed = 1, .batch = 3, .length = 24});
      Board board;
      std::vector<std::vector<double>> told(static_cast<size_t>(layout.shape.size()));
      std::vector<std::jthread> threads;
      for (int rank = 0; rank < layout.shape.size(); ++rank) {
        threads.emplace_back([&, rank] {
          RankLinks ranks(layout.shape, rank, board);
          ThreadPool pool(1);
          Trainer trainer(config, layout, layout.place(rank), pool);
          trainer.parameters().initialize(config.seed);
          for (const int64_t samples : {7, 1, 3}) {
            told[static_cast<size_t>(rank)].push_back(
                trainer.evaluate(sampler, samples, ranks.links).value());
            EXPECT_TRUE(trainer
                            .step(batch_of(config, decoder.config.vocab_size, trainer.next_step(),
                                           ranks.links.batch_rank()),
                                  ranks.links)
                            .ok());
          }
        });
      }
      threads.clear();
      for (const auto& rank : told) EXPECT_EQ(rank, told[0]);
      losses[static_cast<size_t>(stage)] = told[0];
      EXPECT_EQ(losses[static_cast<size_t>(stage)], losses[0]) << "stage " << stage;
    }
    if (whole.empty()) whole = losses[0];
    // AdamW makes much of the last bit of a gradient that is nearly zero.
    EXPECT_LT(worst(losses[0], whole), 1e-4) << differences(losses[0], whole);
  }
}

// A rank is lost in the middle of a step: the others say so, have changed nothing, and wait for nobody.
TEST(Zero, ALostRankEndsTheStepEverywhereAndChangesNothing) {
  Philox rng(std::random_device{}());
  const model::Decoder decoder = random_decoder(rng, false);
  for (const int64_t stage : {0, 1, 2, 3}) {
    TrainConfig config = random_config(rng);
    config.precision = Precision::kF32;
    config.mesh = {.data = 3, .zero = stage};
    config.batch = {.sequences = 6, .length = 24, .micro_sequences = 1};
    const Layout layout = make_layout(config, decoder).value();
    Board board;
    std::barrier together(3);
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < 3; ++rank) {
      threads.emplace_back([&, rank] {
        RankLinks ranks(layout.shape, rank, board);
        ThreadPool pool(1);
        Trainer trainer(config, layout, layout.place(rank), pool);
        trainer.parameters().initialize(1);
        const auto step = [&] {
          return trainer.step(batch_of(config, decoder.config.vocab_size, trainer.next_step(), rank),
                              ranks.links);
        };
        EXPECT_TRUE(step().ok());
        const std::string before = trainer.sha256();
        together.arrive_and_wait();  // a step may end with what only some of them exchange (cut_weights.h)
        if (rank == 1) {
          usleep(5000);  // the others are under way
          ranks.links.replicas->abort("it is a test");
          return;
        }
        const auto lost = step();
        EXPECT_FALSE(lost.ok());
        EXPECT_EQ(trainer.sha256(), before);
        EXPECT_EQ(trainer.next_step(), 1);
      });
    }
  }
}

std::barrier<>* all_there = nullptr;
thread_local runtime::Communicator* to_abort = nullptr;
void lose_a_rank(int, int64_t step, std::span<float>) {
  if (step != 2) return;
  all_there->arrive_and_wait();  // who is here has all sums of gradients
  if (to_abort != nullptr) to_abort->abort("it is a test");
}

// The same in the update, where matrices are on their way to their owners: all say so and wait for nobody,
// and go on from a snapshot.
TEST(Zero, ALostRankEndsTheUpdateOfCutMatricesEverywhere) {
  Philox rng(std::random_device{}());
  const model::Decoder decoder = random_decoder(rng, false);
  for (const OptimizerType type : {OptimizerType::kMuon, OptimizerType::kAdafactor}) {
    TrainConfig config;
    config.steps = 4;
    config.precision = Precision::kF32;
    config.optimizer.type = type;
    config.mesh = {.data = 3, .zero = 1, .bucket_values = 100};  // each weight is cut
    config.batch = {.sequences = 3, .length = 24};
    const Layout layout = make_layout(config, decoder).value();
    Board board;
    std::barrier together(3);
    all_there = &together;
    const Damage usual = std::exchange(damage_for_tests, lose_a_rank);
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < 3; ++rank) {
      threads.emplace_back([&, rank] {
        RankLinks ranks(layout.shape, rank, board);
        if (rank == 1) to_abort = ranks.links.replicas;
        ThreadPool pool(1);
        Trainer trainer(config, layout, layout.place(rank), pool);
        trainer.parameters().initialize(1);
        const auto step = [&] {
          return trainer.step(batch_of(config, decoder.config.vocab_size, trainer.next_step(), rank),
                              ranks.links);
        };
        if (const auto first = step(); !first.ok()) {
          ADD_FAILURE() << "rank " << rank << ": " << first.error().message;
          together.arrive_and_drop();
          return;
        }
        const TrainerSnapshot before = trainer.snapshot();
        const auto lost = step();
        EXPECT_FALSE(lost.ok()) << "rank " << rank;
        EXPECT_EQ(trainer.next_step(), 1);
        ASSERT_TRUE(trainer.restore(before.bytes()).ok());
        EXPECT_EQ(trainer.sha256(), before.sha256());
      });
    }
    threads.clear();
    damage_for_tests = usual;
  }
}

TEST(Zero, WhatCannotBeSharedIsRefusedWithTheReason) {
  Philox rng(1);
  const model::Decoder decoder = random_decoder(rng, false);
  TrainConfig config;
  config.mesh = {.data = 2, .zero = 1};
  config.batch = {.sequences = 5, .length = 24, .micro_sequences = 2};
  EXPECT_TRUE(make_layout(config, decoder).ok());
  config.mesh.zero = 2;
  EXPECT_TRUE(
      make_layout(config, decoder).error().message.starts_with("mesh.zero: stage 2 exchanges at every"));
  config.mesh = {.data = 1, .zero = 3};  // nobody to share with
  EXPECT_EQ(make_layout(config, decoder)->share.stage, 0);
  config.mesh = {.data = 4, .zero = 2, .zero_group = 1};  // and again: all have all, and sum over all
  EXPECT_EQ(make_layout(config, decoder)->share.stage, 0);
  EXPECT_EQ(make_layout(config, decoder)->share.ranks, 4);
  // Of 51 and 50 rows of the head, 48 values each and behind a norm as long, the first of 51 ranks would have
  // some beside one tensor rank alone.
  model::DecoderConfig untied = decoder.config;
  untied.tied_embeddings = false;
  config.optimizer.type = OptimizerType::kAdafactor;
  config.batch = {.sequences = 51, .length = 24, .micro_sequences = 1};
  config.mesh = {.data = 50, .tensor = 2, .zero = 1};
  EXPECT_TRUE(make_layout(config, model::describe(untied)).ok());
  config.mesh.data = 51;
  EXPECT_TRUE(
      make_layout(config, model::describe(untied))
          .error()
          .message.starts_with("mesh.zero: 51 ranks are too many to share 50 rows of lm_head.weight"));
  config.optimizer.type = OptimizerType::kMuon;  // leaves the head to AdamW
  EXPECT_TRUE(make_layout(config, model::describe(untied)).ok());
  config.optimizer.type = OptimizerType::kAdamW;
  config.batch = {.sequences = 5, .length = 24, .micro_sequences = 2};
  config.data.train = "x";
  config.mesh = {.data = 2, .zero = 4};
  EXPECT_THROW(check(config), UserError);
  config.mesh = {.data = 6, .zero = 1, .zero_group = 4};
  EXPECT_THROW(check(config), UserError);
  config.mesh = {.data = 4, .zero_group = 2};
  EXPECT_THROW(check(config), UserError);
}

void expect_same(const Trace& files, const Trace& memory) {
  EXPECT_EQ(files.losses, memory.losses);
  EXPECT_EQ(files.norms, memory.norms);
  EXPECT_EQ(files.half.sha256(), memory.half.sha256());
  EXPECT_EQ(files.whole.sha256(), memory.whole.sha256());
}

// State in files has the bits of state in memory, on any mesh and at any stage; and a checkpoint of it is the
// same.
TEST(Zero, StateInFilesHasTheBitsOfStateInMemory) {
  const TempFolder folder;
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  int64_t trial = 0;
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    for (const OptimizerType type : {OptimizerType::kAdamW, OptimizerType::kLion}) {
      TrainConfig config = random_config(rng);
      config.precision = precision, config.optimizer.type = type;
      config.mesh.zero = trial++ % 4;
      const model::Decoder decoder = random_decoder(rng, true);
      SCOPED_TRACE(fmt::format("data={} tensor={} pipeline={} zero={} {} {}", config.mesh.data,
                               config.mesh.tensor, config.mesh.pipeline, config.mesh.zero,
                               config_name(precision), config_name(type)));
      const Trace memory = train_on_mesh(config, decoder);
      config.offload = {.optimizer = OffloadDevice::kNvme,
                        .path = folder.path(),
                        .sub_group_values = pick(rng, {1024, 5000, 1'000'000}),
                        .buffers = pick(rng, {3, 4})};
      const Trace files = train_on_mesh(config, decoder);
      expect_same(files, memory);
      // From the checkpoint of one in the other.
      const Trace again = train_on_mesh(config, decoder, &memory.half);
      EXPECT_EQ(again.whole.sha256(), memory.whole.sha256());
    }
  }
}

// So have parameters in files, beside state in files and beside state in memory; on any mesh, and from a
// checkpoint of parameters in memory.
TEST(Zero, ParametersInFilesHaveTheBitsOfParametersInMemory) {
  const TempFolder folder;
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  for (const Precision precision :
       drawn(std::vector{Precision::kF32, Precision::kBF16, Precision::kFP16, Precision::kFP8}, 2)) {
    const bool one_of_them = cases_to_draw(1, 2) == 1;
    const OffloadDevice taken = rng.below(2) == 0 ? OffloadDevice::kNone : OffloadDevice::kNvme;
    for (const OffloadDevice optimizer : {OffloadDevice::kNone, OffloadDevice::kNvme}) {
      if (one_of_them && optimizer != taken) continue;
      TrainConfig config = random_config(rng);
      config.precision = precision;
      config.optimizer.type = std::array{OptimizerType::kAdamW, OptimizerType::kAdam, OptimizerType::kSgd,
                                         OptimizerType::kLion}[rng.below(4)];
      config.mesh.zero = 3;
      if (config.mesh.data == 4 && rng.below(2) == 0) config.mesh.zero_group = 2;
      const model::Decoder decoder = random_decoder(rng, true);
      SCOPED_TRACE(
          fmt::format("data={} context={} tensor={} pipeline={} group={} overlap={} buckets of {} {} {}",
                      config.mesh.data, config.mesh.context, config.mesh.tensor, config.mesh.pipeline,
                      config.mesh.zero_group, config.mesh.overlap, config.mesh.bucket_values,
                      config_name(precision), config_name(config.optimizer.type)));
      const Trace memory = train_on_mesh(config, decoder);
      config.offload = {.optimizer = optimizer,
                        .parameters = OffloadDevice::kNvme,
                        .path = folder.path(),
                        .sub_group_values = pick(rng, {1024, 5000, 1'000'000}),
                        .buffers = pick(rng, {3, 4})};
      const Trace files = train_on_mesh(config, decoder);
      expect_same(files, memory);
      const Trace again = train_on_mesh(config, decoder, &memory.half);
      EXPECT_EQ(again.whole.sha256(), memory.whole.sha256());
      config.offload = {};
      const Trace back = train_on_mesh(config, decoder, &files.half);
      EXPECT_EQ(back.whole.sha256(), memory.whole.sha256());
    }
  }
  EXPECT_TRUE(list_folder(folder.path()).value().empty());
}

}  // namespace
}  // namespace flywheel::train
