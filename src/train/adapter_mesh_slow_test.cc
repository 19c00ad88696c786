// Low-rank adapters on a mesh compute what one worker computes: losses and gradient norms, and the adapter
// itself, on random products of axes of up to 8 ranks (threads here), models, targets and optimizers, on
// weights in f32 and on quantized ones. A and B begin at random, so that a gradient which is summed too
// seldom or too often shows at once.
#include <gtest/gtest.h>

#include <array>
#include <random>

#include "train/adapter_config.h"
#include "train/can_train.h"
#include "train/mesh_test_ranks.h"
#include "train/weights_for_tests.h"

namespace flywheel::train {
namespace {

using kernels::DType;

int64_t pick(Philox& rng, std::initializer_list<int64_t> from) {
  return from.begin()[rng.below(from.size())];
}

TrainConfig random_config(Philox& rng) {
  TrainConfig config;
  config.steps = 4;
  config.seed = rng.next_u32();
  config.model.from = "/base";  // the tests hand it over
  const std::vector<std::string> targets[] = {
      {"all-linear"},
      {"q_proj", "o_proj"},
      {"v_proj", "gate_proj", "down_proj"},
      {"layers.2.mlp.down_proj"}};  // most ranks of a pipeline have none
  config.adapter = {.rank = pick(rng, {1, 4, 5}), .targets = targets[rng.below(std::size(targets))]};
  config.adapter.dropout = rng.below(2) == 0 ? 0.2 : 0;
  do {
    config.mesh = {.data = pick(rng, {1, 1, 2, 3}),
                   .context = pick(rng, {1, 1, 1, 2}),
                   .tensor = pick(rng, {1, 2, 2, 4}),
                   .pipeline = pick(rng, {1, 1, 2, 3})};
  } while (config.mesh.workers() > 8 || config.mesh.workers() == 1);
  config.mesh.sequence_parallel = config.mesh.tensor > 1 && rng.below(2) == 0;
  config.mesh.zero = pick(rng, {0, 1, 2});
  config.mesh.bucket_values = pick(rng, {100, 25'000'000});
  config.mesh.overlap = rng.below(4) > 0;
  if (config.mesh.pipeline > 1) {
    config.mesh.schedule =
        std::array{ScheduleKind::kGPipe, ScheduleKind::kOneForwardOneBackward, ScheduleKind::kInterleaved,
                   ScheduleKind::kZeroBubbleH1, ScheduleKind::kZeroBubbleV}[rng.below(5)];
  }
  const int64_t microbatches = config.mesh.pipeline * pick(rng, {1, 2});
  config.batch = {.sequences = config.mesh.replicas() * microbatches, .length = 24, .micro_sequences = 1};
  config.recompute = random_recompute(rng);
  config.precision = Precision::kF32;
  // As in mesh_slow_test.cc: AdamW makes much of rounding where a gradient is nearly zero.
  config.optimizer.lr = 1e-3, config.optimizer.min_lr = 1e-4, config.optimizer.epsilon = 1e-5;
  config.optimizer.warmup_steps = 2, config.optimizer.clip_norm = 0.5;
  config.optimizer.type =
      std::array{OptimizerType::kAdamW, OptimizerType::kSgd, OptimizerType::kAdafactor}[rng.below(3)];
  config.optimizer.adafactor.epsilon1 = 1e-10;
  config.optimizer.ema_decay = rng.below(3) == 0 ? 0.9 : 0;
  return config;
}

std::string describe_job(const TrainConfig& c) {
  return fmt::format(
      "data={} context={} zero={} tensor={} pipeline={} {} sequence_parallel={} recompute={} {} rank={} of "
      "{} dropout={}",
      c.mesh.data, c.mesh.context, c.mesh.zero, c.mesh.tensor, c.mesh.pipeline, config_name(c.mesh.schedule),
      c.mesh.sequence_parallel, config_name(c.recompute), config_name(c.optimizer.type), c.adapter.rank,
      fmt::join(c.adapter.targets, ","), c.adapter.dropout);
}

TrainConfig on_one_worker(TrainConfig config) {
  config.mesh = {};
  return config;
}

// Before the first step, neither A nor B zero.
TrainerSnapshot random_adapter(const TrainConfig& config, const model::Decoder& decoder) {
  const std::vector<FlatWeight> weights = flat_weights(decoder);
  TrainerSnapshot state = empty_snapshot(config.optimizer, weights);
  state.seed = config.seed;
  Philox rng(config.seed, 99);
  for (const FlatWeight& weight : weights) {
    for (int64_t i = 0; i < weight.count; ++i)
      state.weights[static_cast<size_t>(weight.offset + i)] = 0.1f * rng.normal();
  }
  return state;
}

// How far the weights are from those of one worker, of their size.
double distance(const TrainerSnapshot& mesh, const TrainerSnapshot& one) {
  if (mesh.weights.size() != one.weights.size()) return HUGE_VAL;
  double apart = 0, size = 0;
  for (size_t i = 0; i < one.weights.size(); ++i) {
    apart += std::pow(mesh.weights[i] - one.weights[i], 2);
    size += std::pow(one.weights[i], 2);
  }
  return std::sqrt(apart / size);
}

TEST(AdapterMesh, ProductsOfAxesGiveTheLossesOfOneWorker) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  const int products = cases_to_draw(3, 40);
  for (int product = 0; product < products; ++product) {
    const TrainConfig config = random_config(rng);
    const model::DecoderConfig below = random_decoder(rng, false).config;
    const Filled filled = rng.below(2) == 0 ? Filled::kWithSamples : Filled::kWithText;
    SCOPED_TRACE(describe_job(config));
    SCOPED_TRACE(filled == Filled::kWithSamples ? "packed samples" : "text");
    const model::Decoder decoder = decoder_of(config, below);
    const auto allowed = can_train(config, decoder);
    ASSERT_TRUE(allowed.ok()) << allowed.error().message;
    const auto base = std::make_shared<RandomWeights>(model::describe(below), DType::kF32);
    const TrainerSnapshot state = random_adapter(config, decoder);
    const Trace mesh = train_on_mesh(config, decoder, &state, base, filled);
    const TrainConfig alone = on_one_worker(config);
    const Layout layout = make_layout(alone, decoder).value();
    const Trace one = train(alone, layout, 0, {}, &state, base, filled);
    EXPECT_LT(worst(mesh.losses, one.losses), 1e-5) << differences(mesh.losses, one.losses);
    EXPECT_LT(worst(mesh.norms, one.norms), 1e-5) << differences(mesh.norms, one.norms);
    EXPECT_LT(distance(mesh.whole, one.whole), 1e-4);
    // And what a mesh has learned goes on elsewhere.
    const Trace moved = train(alone, layout, 0, {}, &mesh.half, base, filled);
    const std::vector<double> rest(one.losses.begin() + std::ssize(one.losses) / 2, one.losses.end());
    EXPECT_LT(worst(moved.losses, rest), 1e-5) << differences(moved.losses, rest);
    if (testing::Test::HasFailure()) return;
  }
}

// The matrices stay in their blocks, of which 96 hidden units over 2 ranks cut one in the middle.
TEST(AdapterMesh, AQuantizedBaseIsCutAndHasTheLossesOfOneWorker) {
  Philox rng(3);
  model::DecoderConfig below = random_decoder(rng, false).config;
  below.hidden_size = 64, below.intermediate_size = 96, below.num_layers = 3;
  below.head_dim = 8;  // and 4 key-value heads of them make k and v 32 wide
  const auto base = std::make_shared<RandomWeights>(model::describe(below), DType::kQ8_0);
  TrainConfig config = random_config(rng);
  config.adapter = {.rank = 4};
  config.optimizer.type = OptimizerType::kAdamW;
  config.batch = {.sequences = 2, .length = 24, .micro_sequences = 1};
  for (const MeshConfig& mesh : {MeshConfig{.tensor = 2}, MeshConfig{.tensor = 2, .sequence_parallel = true},
                                 MeshConfig{.tensor = 4}, MeshConfig{.tensor = 2, .pipeline = 2}}) {
    config.mesh = mesh;
    SCOPED_TRACE(describe_job(config));
    const model::Decoder decoder = decoder_of(config, below);
    const TrainerSnapshot state = random_adapter(config, decoder);
    const Trace cut = train_on_mesh(config, decoder, &state, base);
    const TrainConfig alone = on_one_worker(config);
    const Trace one = train(alone, make_layout(alone, decoder).value(), 0, {}, &state, base);
    EXPECT_LT(worst(cut.losses, one.losses), 1e-5) << differences(cut.losses, one.losses);
    EXPECT_LT(worst(cut.norms, one.norms), 1e-5) << differences(cut.norms, one.norms);
  }
}

// One microbatch on each rank, so that all stages add in the same order.
TEST(AdapterMesh, StagesOfZeroGiveTheBitsOfStage0) {
  Philox rng(std::random_device{}());
  model::DecoderConfig below = random_decoder(rng, true).config;
  below.hidden_size = 64;  // whole blocks
  const auto base = std::make_shared<RandomWeights>(model::describe(below), DType::kQ8_0);
  TrainConfig config = random_config(rng);
  config.adapter = {.rank = 8, .dropout = 0.1};  // of 512 columns: enough for 8-bit state
  config.precision = Precision::kBF16;
  for (const OptimizerType type :
       drawn(std::vector{OptimizerType::kAdamW, OptimizerType::kLion, OptimizerType::kAdamW8Bit,
                         OptimizerType::kMuon, OptimizerType::kAdafactor},
             2)) {
    config.optimizer.type = type;
    for (const MeshConfig& mesh : {MeshConfig{.data = 3}, MeshConfig{.data = 2, .tensor = 2, .pipeline = 2},
                                   MeshConfig{.data = 2, .context = 2}}) {
      const int64_t bucket_values = config.mesh.bucket_values;
      config.mesh = mesh;
      config.mesh.bucket_values = bucket_values;
      config.batch = {.sequences = mesh.data, .length = 24, .micro_sequences = 1};
      const model::Decoder decoder = decoder_of(config, below);
      const TrainerSnapshot state = random_adapter(config, decoder);
      std::array<Trace, 3> traces;
      for (int64_t stage = 0; stage <= 2; ++stage) {
        config.mesh.zero = stage;
        traces[static_cast<size_t>(stage)] = train_on_mesh(config, decoder, &state, base);
      }
      for (const size_t stage : {1u, 2u}) {
        EXPECT_EQ(traces[stage].losses, traces[0].losses) << "stage " << stage << " " << describe_job(config);
        EXPECT_EQ(traces[stage].norms, traces[0].norms) << "stage " << stage << " " << describe_job(config);
        EXPECT_EQ(traces[stage].whole.sha256(), traces[0].whole.sha256()) << "stage " << stage;
      }
    }
  }
}

// As training begins: A is drawn as one worker draws it, B is 0, whatever the mesh.
TEST(AdapterMesh, TheFirstAdapterIsThatOfOneWorker) {
  Philox rng(std::random_device{}());
  const model::DecoderConfig below = random_decoder(rng, false).config;
  const auto base = std::make_shared<RandomWeights>(model::describe(below), DType::kF32);
  TrainConfig config = random_config(rng);
  config.steps = 1;
  config.adapter = {.rank = 4};
  config.batch = {.sequences = 4, .length = 24, .micro_sequences = 1};
  const model::Decoder decoder = decoder_of(config, below);
  const TrainConfig alone = on_one_worker(config);
  const Trace one = train(alone, make_layout(alone, decoder).value(), 0, {}, nullptr, base);
  for (const MeshConfig& mesh : {MeshConfig{.tensor = 4}, MeshConfig{.pipeline = 4},
                                 MeshConfig{.data = 2, .tensor = 2, .pipeline = 2}}) {
    config.mesh = mesh;
    const Trace cut = train_on_mesh(config, decoder, nullptr, base);
    EXPECT_EQ(cut.half.weights, one.half.weights) << describe_job(config);  // before the first step
  }
}

}  // namespace
}  // namespace flywheel::train
