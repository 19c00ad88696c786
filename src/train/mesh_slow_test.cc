// Any product of mesh axes computes what one worker computes: losses and gradient norms over ten steps, on
// random models, batches, optimizers, precisions and meshes of up to 8 ranks (threads here, each with its own
// trainer); and goes on on one worker with the state that the mesh put together half way.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>

#include "train/can_train.h"
#include "train/mesh_test_ranks.h"

namespace flywheel::train {
namespace {

TEST(Mesh, NoComparisonLosesANumberThatIsNotFinite) {
  const double nan = std::nan("");
  EXPECT_EQ(worst({1, nan, 1}, {1, 1, 1}), HUGE_VAL);
  EXPECT_EQ(worst({1, HUGE_VAL, 1}, {1, 1, 1}), HUGE_VAL);
  EXPECT_EQ(worst({1, 1, 1}, {1, nan, 1}), HUGE_VAL);
  EXPECT_EQ(worst({1, 2}, {1, 1}), 1);
}

std::string describe_mesh(const TrainConfig& c) {
  return fmt::format(
      "data={} expert={} context={} zero={} (groups of {}, buckets of {}) tensor={} pipeline={} {} "
      "sequence_parallel={} recompute={} micro={} {} {} ema={}",
      c.mesh.data, c.mesh.expert, c.mesh.context, c.mesh.zero, c.mesh.zero_group, c.mesh.bucket_values,
      c.mesh.tensor, c.mesh.pipeline, config_name(c.mesh.schedule), c.mesh.sequence_parallel,
      config_name(c.recompute), c.batch.micro_sequences, config_name(c.precision),
      config_name(c.optimizer.type), c.optimizer.ema_decay);
}

// A mesh of at most 8 ranks. `experts`: of a model that has some, which may be dealt out.
TrainConfig random_config(Philox& rng, std::initializer_list<Precision> precisions, bool experts = false) {
  const auto pick = [&](std::initializer_list<int64_t> from) { return from.begin()[rng.below(from.size())]; };
  TrainConfig config;
  config.steps = cases_to_draw(6, 10);
  config.seed = rng.next_u32();
  do {
    config.mesh = {.data = pick({1, 2, 3, 4}), .tensor = pick({1, 2, 4}), .pipeline = pick({1, 2, 3, 4})};
    if (experts) config.mesh.expert = pick({1, 2, 4});
    config.mesh.context = pick({1, 1, 2, 3, 4});  // all of which divide the length into equal pieces
  } while (config.mesh.workers() > 8 || config.mesh.workers() == 1);
  config.mesh.sequence_parallel = config.mesh.tensor > 1 && rng.below(2) == 0;
  if (config.mesh.pipeline > 1) {
    config.mesh.schedule =
        std::array{ScheduleKind::kGPipe, ScheduleKind::kOneForwardOneBackward, ScheduleKind::kInterleaved,
                   ScheduleKind::kZeroBubbleH1, ScheduleKind::kZeroBubbleV}[rng.below(5)];
  }
  const int64_t microbatches = config.mesh.pipeline * pick({1, 2});
  config.batch = {.sequences = config.mesh.replicas() * microbatches, .length = 24, .micro_sequences = 1};
  config.recompute = random_recompute(rng);
  // AdamW divides by the size of a gradient, and so makes much of rounding where that is nearly zero: a small
  // rate and a larger epsilon keep the steps comparable.
  config.optimizer.lr = 5e-4, config.optimizer.min_lr = 1e-4, config.optimizer.epsilon = 1e-5;
  config.optimizer.warmup_steps = 3, config.optimizer.clip_norm = 0.5;
  config.precision = precisions.begin()[rng.below(precisions.size())];
  config.loss_scale.initial_power = 10;
  const auto& types = ConfigEnum<OptimizerType>::names;
  config.optimizer.type = types[rng.below(types.size())].second;
  config.mesh.zero = pick({0, 1, 2, 3});
  if (config.mesh.zero > 0 && config.mesh.data == 4 && config.mesh.expert == 1)
    config.mesh.zero_group = pick({0, 2});
  config.mesh.bucket_values = pick({100, 10'000, 25'000'000});
  config.mesh.overlap = rng.below(4) > 0;
  config.optimizer.ema_decay = rng.below(3) == 0 ? 0.9 : 0;
  config.optimizer.adafactor.beta1 = rng.below(2) == 0 ? 0.9 : 0;
  config.optimizer.adafactor.epsilon1 = 1e-10;
  return config;
}

void compare_products(std::initializer_list<Precision> precisions, double tolerance) {
  const int products = cases_to_draw(2, 30);
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  std::map<std::string, int> drawn;
  for (int product = 0; product < products;) {
    const bool experts = rng.below(2) == 0;
    TrainConfig config = random_config(rng, precisions, experts);
    const bool blocks =
        config.precision == Precision::kFP8 || config.optimizer.type == OptimizerType::kAdamW8Bit;
    const model::Decoder decoder = experts ? random_mixture(rng, blocks) : random_decoder(rng, blocks);
    if (decoder.config.moe.choice_bias) config.router.bias_rate = 0.001;
    if (decoder.config.moe.any() && rng.below(2) == 0) config.router.capacity_factor = 1.2;
    const Filled filled = rng.below(3) == 0 ? Filled::kWithSamples : Filled::kWithText;
    const bool packed = filled == Filled::kWithSamples;
    if (packed) config.router = {.balance_loss = 0, .z_loss = 0};  // as these are of whole sequences
    if (!make_layout(config, decoder).ok()) {                      // four tensor ranks cut such blocks
      EXPECT_TRUE(blocks && config.mesh.tensor == 4) << make_layout(config, decoder).error().message;
      continue;
    }
    ++product, ++drawn[config_name(config.optimizer.type)], ++drawn[config_name(config.precision)];
    ++drawn[fmt::format("zero{}", config.mesh.stage())];
    ++drawn[decoder.config.family], drawn["experts dealt out"] += config.mesh.expert > 1;
    drawn["sequences cut"] += config.mesh.context > 1;
    drawn["packed"] += packed, drawn["packed and cut"] += packed && config.mesh.context > 1;
    SCOPED_TRACE(decoder.config.family);
    SCOPED_TRACE(describe_mesh(config));
    SCOPED_TRACE(packed ? "packed samples" : "text");
    const Trace mesh = train_on_mesh(config, decoder, nullptr, nullptr, filled);
    TrainConfig alone = config;
    alone.mesh = {};
    const Layout layout = make_layout(alone, decoder).value();
    const Trace one = train(alone, layout, 0, {}, nullptr, nullptr, filled);
    // These round inside: the last bit of a gradient may become a code of 8-bit state, a bf16 value's last
    // bit, or a sign; where the gradients are rounded too, that happens at every step. The first step has not
    // been there yet.
    const OptimizerType type = config.optimizer.type;
    const bool rounds =
        type == OptimizerType::kAdamW8Bit || type == OptimizerType::kMuon || type == OptimizerType::kLion;
    const bool f32 = config.precision == Precision::kF32;
    const bool fp8 = config.precision == Precision::kFP8;
    const double allowed = !rounds ? tolerance : f32 ? 1e-3 : 2 * tolerance;
    EXPECT_LT(worst(mesh.losses, one.losses), allowed) << differences(mesh.losses, one.losses);
    EXPECT_NEAR(mesh.losses[0] / one.losses[0], 1, tolerance);
    // In fp8 only the tensor and the context axis sum what is then rounded to two or three bits of fraction.
    const bool sums = config.mesh.tensor > 1 || config.mesh.context > 1;
    EXPECT_NEAR(mesh.norms[0] / one.norms[0], 1, !fp8 ? tolerance : sums ? 0.1 : 1e-6);
    // From the second step on a last bit decides how a weight is rounded to fp8, and gradients of two bits'
    // fraction are other ones; where an optimizer and the gradients round, their norms part too.
    if (!fp8 && (f32 || !rounds)) {
      EXPECT_LT(worst(mesh.norms, one.norms), rounds ? 5e-2 : tolerance)
          << differences(mesh.norms, one.norms);
    }
    const Trace moved = train(alone, layout, 0, {}, &mesh.half, nullptr, filled);
    const std::vector<double> rest(one.losses.begin() + std::ssize(one.losses) / 2, one.losses.end());
    EXPECT_LT(worst(moved.losses, rest), allowed) << differences(moved.losses, rest);
    if (!f32) continue;
    double apart = 0, size = 0;
    ASSERT_EQ(mesh.whole.weights.size(), one.whole.weights.size());
    for (size_t i = 0; i < one.whole.weights.size(); ++i) {
      apart += std::pow(mesh.whole.weights[i] - one.whole.weights[i], 2);
      size += std::pow(one.whole.weights[i], 2);
    }
    EXPECT_LT(std::sqrt(apart / size), rounds ? 1e-2 : 1e-4);
    if (testing::Test::HasFailure()) return;
  }
  for (const auto& [name, count] : drawn) std::printf("%s %d  ", name.c_str(), count);
  std::printf("\n");
}

TEST(Mesh, ProductsOfAxesGiveTheLossesOfOneWorkerInF32) {
  compare_products({Precision::kF32}, 1e-5);
}

TEST(Mesh, ProductsOfAxesGiveTheLossesOfOneWorkerInBf16) {
  compare_products({Precision::kBF16}, 1e-2);
}

TEST(Mesh, ProductsOfAxesGiveTheLossesOfOneWorkerInFp16AndFp8) {
  compare_products({Precision::kFP16, Precision::kFP8}, 1e-2);
}

// Gradients overflow on the rank that has them; the norm over all of them decides for all.
TEST(Mesh, AllRanksSkipAStepThatOverflowsOrNone) {
  Philox rng(std::random_device{}());
  const model::Decoder decoder = random_decoder(rng, false);
  TrainConfig config = random_config(rng, {Precision::kFP16});
  config.steps = 40;
  config.loss_scale = {.initial_power = 40, .window = 6, .hysteresis = 1};
  config.mesh = {.tensor = 2, .pipeline = 2};
  config.batch = {.sequences = 4, .length = 24, .micro_sequences = 1};
  config.optimizer.type = OptimizerType::kAdamW;
  const Trace mesh = train_on_mesh(config, decoder);
  const auto skips = std::ranges::count(mesh.skipped, true);
  EXPECT_GT(skips, 5);
  EXPECT_LT(skips, 35);
  config.mesh = {};
  const Trace one = train(config, make_layout(config, decoder).value(), 0, {});
  EXPECT_LT(worst(mesh.losses, one.losses), 1e-2);
  config.mesh = {.data = 2, .tensor = 2};
  const Trace replicas = train_on_mesh(config, decoder);
  EXPECT_GT(std::ranges::count(replicas.skipped, true), 5);
}

// Context ranks: the order of every sum is fixed, so a replay has the same bits; and what a rank keeps for
// its recovery is any other's, as they hold the same.
TEST(Mesh, SequencesThatAreCutTrainWithTheSameBitsAgain) {
  Philox rng(std::random_device{}());
  TrainConfig config = random_config(rng, {Precision::kBF16});
  config.steps = 4;
  config.optimizer.type = OptimizerType::kAdamW;
  config.mesh = {.data = 2, .context = 4};
  config.batch = {.sequences = 4, .length = 24, .micro_sequences = 1};
  const model::Decoder decoder = random_decoder(rng, false);
  EXPECT_FALSE(make_layout(config, decoder)->splits_model());
  const Trace once = train_on_mesh(config, decoder), again = train_on_mesh(config, decoder);
  EXPECT_EQ(once.losses, again.losses);
  EXPECT_EQ(once.norms, again.norms);
  EXPECT_EQ(once.whole.sha256(), again.whole.sha256());
}

// Packed samples that context ranks cut, with each way in which a pass may be run: whole, in stages whose
// backward is split, with layers that are computed again, with rows that tensor ranks share, of parameters
// that come layer by layer. One worker's losses and norms, and the same bits again.
TEST(Mesh, PackedSamplesThatAreCutTrainAsOnOneWorker) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  const model::Decoder decoder = random_decoder(rng, false);
  struct Product {
    MeshConfig mesh;
    Recompute recompute;
  };
  const std::vector<Product> products = {
      {{.context = 3}, Recompute::kNone},
      {{.data = 2, .context = 4, .zero = 3, .bucket_values = 100}, Recompute::kFull},
      {{.data = 2, .context = 2, .tensor = 2, .sequence_parallel = true}, Recompute::kSelective},
      {{.context = 2, .pipeline = 3, .schedule = ScheduleKind::kZeroBubbleV, .zero = 2}, Recompute::kFull}};
  for (const auto& [mesh, recompute] : drawn(products, 2)) {
    TrainConfig config = random_config(rng, {Precision::kF32});
    config.steps = 4;
    config.mesh = mesh, config.recompute = recompute;
    config.optimizer.type = OptimizerType::kAdamW;
    config.batch = {.sequences = 12, .length = 24, .micro_sequences = 2};
    SCOPED_TRACE(describe_mesh(config));
    const Trace cut = train_on_mesh(config, decoder, nullptr, nullptr, Filled::kWithSamples);
    const Trace again = train_on_mesh(config, decoder, nullptr, nullptr, Filled::kWithSamples);
    EXPECT_EQ(cut.losses, again.losses);
    EXPECT_EQ(cut.norms, again.norms);
    EXPECT_EQ(cut.whole.sha256(), again.whole.sha256());
    config.mesh = {}, config.recompute = Recompute::kNone;
    const Layout layout = make_layout(config, decoder).value();
    const Trace one = train(config, layout, 0, {}, nullptr, nullptr, Filled::kWithSamples);
    EXPECT_LT(worst(cut.losses, one.losses), 1e-5) << differences(cut.losses, one.losses);
    EXPECT_LT(worst(cut.norms, one.norms), 1e-5) << differences(cut.norms, one.norms);
    const Trace text = train(config, layout, 0, {});
    EXPECT_GT(worst(text.losses, one.losses), 1e-4) << "samples are as if they were not there";
  }
}

// can_train() is what `flywheel plan` and `flywheel train` ask. What it allows takes a step, on any mesh, in
// any precision; what it refuses has no layout or is no config.
TEST(Mesh, WhatIsAllowedTrainsAndWhatIsNotHasNoLayout) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  const auto pick = [&](std::initializer_list<int64_t> from) { return from.begin()[rng.below(from.size())]; };
  const int wanted = cases_to_draw(10, 30);
  int allowed = 0, refused = 0;
  while (allowed < wanted) {
    TrainConfig config =
        random_config(rng, {Precision::kF32, Precision::kBF16, Precision::kFP16, Precision::kFP8});
    config.steps = 1;
    config.mesh.tensor = pick({1, config.mesh.tensor, 3});
    config.mesh.chunks = pick({0, 0, 1, 2, 3});
    config.mesh.sequence_parallel = rng.below(3) == 0;
    if (config.mesh.workers() > 8) continue;
    config.batch = {
        .sequences = pick({2, 4, 5, 12}), .length = pick({7, 24}), .micro_sequences = pick({0, 1, 2, 3})};
    model::Decoder decoder = random_decoder(rng, rng.below(2) == 0);
    decoder.config.num_layers = pick({1, 2, 8});
    decoder = model::describe(decoder.config);
    SCOPED_TRACE(describe_mesh(config));
    const auto verdict = can_train(config, decoder);
    if (!verdict.ok()) {
      ++refused;
      bool starts = true;
      try {
        check(config);
        starts = make_layout(config, decoder).ok();
      } catch (const UserError&) {
        starts = false;
      }
      EXPECT_FALSE(starts) << verdict.error().message;
      continue;
    }
    ++allowed;
    const Trace mesh = train_on_mesh(config, decoder);
    ASSERT_EQ(mesh.losses.size(), 1u);
    EXPECT_TRUE(std::isfinite(mesh.losses[0]));
  }
  EXPECT_GT(refused, wanted / 4);
}

TEST(Mesh, WhatDoesNotDivideIsRefusedWithTheReason) {
  Philox rng(1);
  const model::Decoder decoder = random_decoder(rng, false);
  TrainConfig config;
  config.mesh.tensor = 3;
  EXPECT_EQ(make_layout(config, decoder).error().message,
            "mesh.tensor: 8 attention heads do not divide by 3 ranks");
  config.mesh = {.pipeline = 11};
  config.batch = {.sequences = 11, .length = 8, .micro_sequences = 1};
  EXPECT_EQ(make_layout(config, decoder).error().message,
            "mesh.pipeline: 11 stages need as many blocks; the model has 10 (embedding, 8 layers, head)");
  config.mesh = {.data = 2, .pipeline = 2};
  EXPECT_EQ(make_layout(config, decoder).error().code, ErrorCode::kInvalid);
  config.mesh = {.context = 3};
  EXPECT_EQ(
      make_layout(config, decoder).error().message,
      "mesh.context: batch.length 8 does not divide into 6 equal pieces, two for each of 3 context ranks");
  config.mesh = {.context = 4, .tensor = 4, .sequence_parallel = true};
  EXPECT_EQ(make_layout(config, decoder).error().message,
            "mesh.sequence_parallel: batch.length 8 does not divide by 4 context times 4 tensor ranks");
}

}  // namespace
}  // namespace flywheel::train
