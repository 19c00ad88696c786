// Any product of mesh axes computes what one worker computes: losses and gradient norms over ten steps, on
// random models, batches, optimizers, precisions and meshes of up to 8 ranks (threads here, each with its own
// trainer); and goes on on one worker with the state that the mesh put together half way.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "base/philox.h"
#include "train/trainer.h"

namespace flywheel::train {
namespace {

using runtime::Communicator;
using runtime::Shape;

constexpr int64_t kSteps = 10;

Deadline soon() {
  return Deadline::after_ms(60'000);
}

// Where the ranks of a mesh find each other's endpoints.
class Board {
 public:
  std::vector<std::string> exchange(const std::string& group, int rank, int size,
                                    const std::string& endpoint) {
    std::unique_lock lock(mutex_);
    auto& endpoints = groups_[group];
    endpoints[rank] = endpoint;
    changed_.notify_all();
    CHECK(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return std::ssize(endpoints) == size; }),
          "not all ranks of {} came", group);
    std::vector<std::string> all;
    for (const auto& [r, text] : endpoints) all.push_back(text);
    return all;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::map<int, std::string>> groups_;
};

// One rank's communicators; axes of one rank have none.
class RankLinks {
 public:
  RankLinks(const Shape& shape, int rank, Board& board) {
    links.pipeline = open(shape, rank, "pipeline", board);
    links.replicas = open(shape, rank, "data", board);
    links.tensor = open(shape, rank, "tensor", board);
    links.all = open(shape, rank, "", board);
    links.deadline = soon();
  }
  Links links;

 private:
  Communicator* open(const Shape& shape, int rank, const std::string& axis, Board& board) {
    const auto ranks = shape.group(rank, axis);
    if (!ranks.ok() || ranks->size() == 1) return nullptr;
    const auto self = static_cast<int>(std::ranges::find(*ranks, rank) - ranks->begin());
    const std::string name = fmt::format("{}[{}]", axis, ranks->front());
    auto communicator = Communicator::open({.name = fmt::format("{}/{}", static_cast<void*>(&board), name),
                                            .epoch = 1,
                                            .rank = self,
                                            .hosts = std::vector<std::string>(ranks->size(), "127.0.0.1")});
    CHECK(communicator.ok(), "{}", communicator.error().message);
    const auto endpoints =
        board.exchange(name, self, static_cast<int>(ranks->size()), (*communicator)->endpoint());
    const auto connected = (*communicator)->connect(endpoints, soon());
    CHECK(connected.ok(), "{}", connected.error().message);
    owned_.push_back(std::move(*communicator));
    return owned_.back().get();
  }
  std::vector<std::unique_ptr<Communicator>> owned_;
};

struct Trace {
  std::vector<double> losses, norms;
  std::vector<bool> skipped;
  TrainerSnapshot half, whole;  // after half the steps and after all
};

data::Batch batch_of(const TrainConfig& config, int64_t vocab, int64_t step, int64_t rank) {
  const int64_t world = config.mesh.data, row = config.batch.length + 1;
  const int64_t begin = config.batch.sequences * rank / world,
                end = config.batch.sequences * (rank + 1) / world;
  Philox rng(config.seed, static_cast<uint64_t>(1000 + step));
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < config.batch.sequences * row; ++i)
    tokens.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
  return {.sequences = end - begin,
          .length = config.batch.length,
          .tokens = {tokens.begin() + begin * row, tokens.begin() + end * row}};
}

// The steps of one rank, from `state` where there is one; rank 0's trace counts.
Trace train(const TrainConfig& config, const Layout& layout, int rank, const Links& links,
            const TrainerSnapshot* state = nullptr) {
  ThreadPool pool(1);
  Trainer trainer(config, layout, layout.place(rank), pool);
  trainer.parameters().initialize(config.seed);
  if (state != nullptr) {
    EXPECT_TRUE(trainer.restore_whole(state->bytes()).ok());
  }
  Trace trace;
  for (int64_t step = trainer.next_step(); step < config.steps; ++step) {
    if (step == config.steps / 2) trace.half = trainer.whole_snapshot(links).value();
    const auto result = trainer.step(
        batch_of(config, layout.decoder.config.vocab_size, step, Links::rank(links.replicas)), links);
    if (!result.ok()) {
      ADD_FAILURE() << "rank " << rank << ": " << result.error().message;
      return trace;
    }
    trace.losses.push_back(result->loss), trace.norms.push_back(result->gradient_norm);
    trace.skipped.push_back(result->skipped);
  }
  trace.whole = trainer.whole_snapshot(links).value();
  return trace;
}

Trace train_on_mesh(const TrainConfig& config, const model::Decoder& decoder) {
  const auto layout = make_layout(config, decoder);
  if (!layout.ok()) {
    ADD_FAILURE() << layout.error().message;
    return {};
  }
  Board board;
  std::vector<Trace> traces(static_cast<size_t>(layout->shape.size()));
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < layout->shape.size(); ++rank) {
    threads.emplace_back([&, rank] {
      RankLinks ranks(layout->shape, rank, board);
      traces[static_cast<size_t>(rank)] = train(config, *layout, rank, ranks.links);
    });
  }
  threads.clear();
  for (const Trace& trace : traces) {
    EXPECT_EQ(trace.losses, traces[0].losses);
    EXPECT_EQ(trace.norms, traces[0].norms);
    EXPECT_EQ(trace.skipped, traces[0].skipped);
  }
  return std::move(traces[0]);
}

double worst(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return HUGE_VAL;
  double error = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double one = std::abs(got[i] / want[i] - 1);
    if (!std::isfinite(one)) return HUGE_VAL;  // std::max would lose a NaN
    error = std::max(error, one);
  }
  return error;
}

TEST(Mesh, NoComparisonLosesANumberThatIsNotFinite) {
  const double nan = std::nan("");
  EXPECT_EQ(worst({1, nan, 1}, {1, 1, 1}), HUGE_VAL);
  EXPECT_EQ(worst({1, HUGE_VAL, 1}, {1, 1, 1}), HUGE_VAL);
  EXPECT_EQ(worst({1, 1, 1}, {1, nan, 1}), HUGE_VAL);
  EXPECT_EQ(worst({1, 2}, {1, 1}), 1);
}

// What differs, step by step.
std::string differences(const std::vector<double>& got, const std::vector<double>& want) {
  std::string text;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i)
    text += fmt::format(" {:.4g} ({:+.1e})", want[i], got[i] / want[i] - 1);
  return text;
}

std::string describe_mesh(const TrainConfig& c) {
  return fmt::format(
      "data={} tensor={} pipeline={} {} sequence_parallel={} recompute={} micro={} {} {} ema={}", c.mesh.data,
      c.mesh.tensor, c.mesh.pipeline, config_name(c.mesh.schedule), c.mesh.sequence_parallel, c.recompute,
      c.batch.micro_sequences, config_name(c.precision), config_name(c.optimizer.type),
      c.optimizer.ema_decay);
}

// A mesh of at most 8 ranks.
TrainConfig random_config(Philox& rng, std::initializer_list<Precision> precisions) {
  const auto pick = [&](std::initializer_list<int64_t> from) { return from.begin()[rng.below(from.size())]; };
  TrainConfig config;
  config.steps = kSteps;
  config.seed = rng.next_u32();
  do {
    config.mesh = {.data = pick({1, 2, 3, 4}), .tensor = pick({1, 2, 4}), .pipeline = pick({1, 2, 3, 4})};
  } while (config.mesh.workers() > 8 || config.mesh.workers() == 1);
  config.mesh.sequence_parallel = config.mesh.tensor > 1 && rng.below(2) == 0;
  if (config.mesh.pipeline > 1) {
    config.mesh.schedule =
        std::array{ScheduleKind::kGPipe, ScheduleKind::kOneForwardOneBackward, ScheduleKind::kInterleaved,
                   ScheduleKind::kZeroBubbleH1, ScheduleKind::kZeroBubbleV}[rng.below(5)];
  }
  const int64_t microbatches = config.mesh.pipeline * pick({1, 2});
  config.batch = {.sequences = config.mesh.data * microbatches, .length = 24, .micro_sequences = 1};
  config.recompute = rng.below(3) == 0;
  // AdamW divides by the size of a gradient, and so makes much of rounding where that is nearly zero: a small
  // rate and a larger epsilon keep ten steps comparable.
  config.optimizer.lr = 5e-4, config.optimizer.min_lr = 1e-4, config.optimizer.epsilon = 1e-5;
  config.optimizer.warmup_steps = 3, config.optimizer.clip_norm = 0.5;
  config.precision = precisions.begin()[rng.below(precisions.size())];
  config.loss_scale.initial_power = 10;
  const auto& types = ConfigEnum<OptimizerType>::names;
  config.optimizer.type = types[rng.below(types.size())].second;
  config.optimizer.ema_decay = rng.below(3) == 0 ? 0.9 : 0;
  config.optimizer.adafactor.beta1 = rng.below(2) == 0 ? 0.9 : 0;
  config.optimizer.adafactor.epsilon1 = 1e-10;
  return config;
}

// `wide`: blocks of 8-bit state and of fp8 lie whole on each of two tensor ranks.
model::Decoder random_decoder(Philox& rng, bool wide) {
  model::DecoderConfig c;
  c.family = rng.below(2) == 0 ? "llama" : "qwen3";
  c.vocab_size = wide ? 128 : 101, c.hidden_size = 48, c.intermediate_size = wide ? 512 : 80;
  c.num_layers = 8, c.num_heads = 8, c.num_kv_heads = 4, c.head_dim = wide ? 64 : 12, c.max_positions = 64;
  c.tied_embeddings = rng.below(2) == 0;
  c.qk_norm = c.family == "qwen3";
  c.qkv_bias = rng.below(2) == 0, c.output_bias = c.family == "llama" && rng.below(2) == 0;
  return model::describe(c);
}

void compare_products(std::initializer_list<Precision> precisions, double tolerance) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  std::map<std::string, int> drawn;
  for (int product = 0; product < 30;) {
    const TrainConfig config = random_config(rng, precisions);
    const bool blocks =
        config.precision == Precision::kFP8 || config.optimizer.type == OptimizerType::kAdamW8Bit;
    const model::Decoder decoder = random_decoder(rng, blocks);
    if (!make_layout(config, decoder).ok()) {  // four tensor ranks cut such blocks
      EXPECT_TRUE(blocks && config.mesh.tensor == 4) << make_layout(config, decoder).error().message;
      continue;
    }
    ++product, ++drawn[config_name(config.optimizer.type)], ++drawn[config_name(config.precision)];
    SCOPED_TRACE(describe_mesh(config));
    const Trace mesh = train_on_mesh(config, decoder);
    TrainConfig alone = config;
    alone.mesh = {};
    const Layout layout = make_layout(alone, decoder).value();
    const Trace one = train(alone, layout, 0, {});
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
    // In fp8 only the tensor axis sums what is then rounded to two or three bits of fraction.
    EXPECT_NEAR(mesh.norms[0] / one.norms[0], 1, !fp8 ? tolerance : config.mesh.tensor > 1 ? 0.1 : 1e-6);
    // From the second step on a last bit decides how a weight is rounded to fp8, and gradients of two bits'
    // fraction are other ones; where an optimizer and the gradients round, their norms part too.
    if (!fp8 && (f32 || !rounds)) {
      EXPECT_LT(worst(mesh.norms, one.norms), rounds ? 5e-2 : tolerance)
          << differences(mesh.norms, one.norms);
    }
    const Trace moved = train(alone, layout, 0, {}, &mesh.half);
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

TEST(Mesh, ThirtyProductsOfAxesGiveTheLossesOfOneWorkerInF32) {
  compare_products({Precision::kF32}, 1e-5);
}

TEST(Mesh, ThirtyProductsOfAxesGiveTheLossesOfOneWorkerInBf16) {
  compare_products({Precision::kBF16}, 1e-2);
}

TEST(Mesh, ThirtyProductsOfAxesGiveTheLossesOfOneWorkerInFp16AndFp8) {
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

TEST(Mesh, WhatDoesNotDivideIsRefusedWithTheReason) {
  Philox rng(1);
  const model::Decoder decoder = random_decoder(rng, false);
  TrainConfig config;
  config.mesh.tensor = 3;
  EXPECT_EQ(make_layout(config, decoder).error().message,
            "mesh.tensor: 8 attention heads do not divide by 3 ranks");
  config.mesh = {.pipeline = 9};
  config.batch = {.sequences = 9, .length = 8, .micro_sequences = 1};
  EXPECT_EQ(make_layout(config, decoder).error().message, "mesh.pipeline: 8 layers do not make 9 stages");
  config.mesh = {.data = 2, .pipeline = 2};
  EXPECT_EQ(make_layout(config, decoder).error().code, ErrorCode::kInvalid);
}

}  // namespace
}  // namespace flywheel::train
