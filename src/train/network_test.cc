#include "train/network.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <random>

#include "base/cases_for_tests.h"
#include "base/file.h"
#include "base/philox.h"
#include "kernels/variant.h"
#include "model/low_rank.h"
#include "train/checkpoint.h"
#include "train/optimizer.h"
#include "train/weights_for_tests.h"

namespace flywheel::train {
namespace {

using kernels::DType;

model::DecoderConfig small_config(const std::string& family = "llama") {
  model::DecoderConfig c;
  c.family = family;
  c.vocab_size = 101, c.hidden_size = 48, c.intermediate_size = 80, c.num_layers = 3;
  c.num_heads = 4, c.num_kv_heads = 2, c.head_dim = 12, c.max_positions = 64;
  c.tied_embeddings = true;
  return c;
}

// Experts of which each token goes to some, and a shared one.
model::DecoderConfig small_mixture(const std::string& family) {
  model::DecoderConfig c = small_config(family);
  c.qk_norm = family == "dots1", c.qkv_bias = family == "qwen2_moe";
  c.moe = model::moe_of_family(family);
  c.moe.experts = 4, c.moe.per_token = 2, c.moe.intermediate_size = 40;
  c.moe.shared_intermediate_size = 80;
  return c;
}

std::vector<int32_t> random_tokens(int64_t sequences, int64_t length, int64_t vocab, uint64_t seed) {
  Philox rng(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(sequences * (length + 1)));
  for (int32_t& t : tokens) t = static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab)));
  return tokens;
}

struct Model {
  Model(const model::DecoderConfig& config, DType dtype, ThreadPool& pool, Network::Options options = {},
        Rounding rounding = Rounding::kNone)
      : decoder(whole(model::describe(config))),
        parameters(decoder, dtype, pool, rounding),
        network(Network::make(decoder, parameters, links, options, pool)) {
    parameters.initialize(7);
  }
  LocalDecoder decoder;
  Links links;
  Parameters parameters;
  std::unique_ptr<Network> network;
};

// The gradient along a random direction against the difference of two losses. f32 sums limit how exact it is.
void check_slope(const model::DecoderConfig& config) {
  ThreadPool pool(2);
  Model m(config, DType::kF32, pool, {.router = {.balance_loss = 0, .z_loss = 0}});
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Philox rng(seed);
  for (float& w : m.parameters.weights()) w += 0.1f * rng.normal();
  const auto tokens = random_tokens(2, 19, config.vocab_size, seed);
  const Sequences input{2, 19, tokens};
  m.parameters.pack();
  m.network->train(input);
  std::vector<float> direction(m.parameters.weights().size());
  double slope = 0;
  for (size_t i = 0; i < direction.size(); ++i) {
    direction[i] = rng.normal();
    slope += static_cast<double>(direction[i]) * m.parameters.gradients()[i];
  }
  const std::vector<float> at(m.parameters.weights().begin(), m.parameters.weights().end());
  const float h = 1e-4f;
  const auto loss_at = [&](float sign) {
    for (size_t i = 0; i < at.size(); ++i) m.parameters.weights()[i] = at[i] + sign * h * direction[i];
    m.parameters.pack();
    return m.network->evaluate(input);
  };
  const double difference = (loss_at(1) - loss_at(-1)) / (2 * static_cast<double>(h));
  // Along a random direction the slope has the size of the gradient, and now and then is nearly zero.
  EXPECT_NEAR(difference, slope, 0.01 * std::sqrt(m.parameters.squared_gradients()));
}

// Samples of 7, 12 and 4 tokens in one sequence of 26, and what is left of it.
struct Packed {
  std::vector<int32_t> tokens, begins;
  std::vector<uint8_t> counts;
  Sequences input() const { return {1, 26, tokens, counts, begins}; }
};
constexpr int64_t kPackedLengths[] = {7, 12, 4};

Packed packed_samples(uint64_t seed) {
  Packed packed{.tokens = random_tokens(1, 26, 101, seed), .begins = {}, .counts = {}};
  for (const int64_t length : kPackedLengths) {
    const auto begin = static_cast<int32_t>(packed.begins.size());
    packed.begins.insert(packed.begins.end(), static_cast<size_t>(length), begin);
    for (int64_t i = 0; i < length; ++i) packed.counts.push_back(i >= 2 && i + 1 < length ? 1 : 0);
  }
  packed.begins.resize(26, static_cast<int32_t>(packed.begins.size()));
  packed.counts.resize(26, 0);
  return packed;
}

// A sample in a packed sequence is computed as alone: every log-probability has the same bits, whatever its
// neighbours are, and the gradient is the sum of the samples' own.
TEST(Network, PackedSamplesAreComputedAsAlone) {
  ThreadPool pool(2);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t window : {int64_t{0}, int64_t{5}}) {
      auto config = small_config(window > 0 ? "mistral" : "llama");
      config.sliding_window = window;
      Model together(config, dtype, pool), alone(config, dtype, pool);
      const Packed packed = packed_samples(5);
      std::vector<float> logprobs(26), own(26);
      const double loss = together.network->evaluate(packed.input(), logprobs.data());
      EXPECT_EQ(together.network->train(packed.input()), loss);
      double sum = 0;
      for (size_t begin = 0, i = 0; i < std::size(kPackedLengths);
           begin += static_cast<size_t>(kPackedLengths[i++])) {
        // Its last token has no target, so the sample alone is one input shorter.
        const auto inputs = static_cast<size_t>(kPackedLengths[i] - 1);
        const std::vector<int32_t> begins(inputs, 0);
        const Sequences sample{1, static_cast<int64_t>(inputs),
                               std::span(packed.tokens).subspan(begin, inputs + 1),
                               std::span(packed.counts).subspan(begin, inputs), begins};
        sum += alone.network->evaluate(sample, own.data());
        alone.network->train(sample);
        for (size_t t = 0; t < inputs; ++t)
          EXPECT_EQ(own[t], logprobs[begin + t]) << "sample " << i << ", token " << t;
      }
      EXPECT_NEAR(loss, sum, 1e-9 * sum);
      double difference = 0;
      for (size_t i = 0; i < alone.parameters.gradients().size(); ++i) {
        const double d = together.parameters.gradients()[i] - alone.parameters.gradients()[i];
        difference += d * d;
      }
      // Sums over rows come in another order; in bf16 each sample's rows are rounded alike in both.
      EXPECT_LT(std::sqrt(difference), 1e-5 * std::sqrt(alone.parameters.squared_gradients()));
    }
  }
}

// A small model in a folder, and beside it the same one with an adapter, which stands on that folder's
// weights.
struct Adapted {
  explicit Adapted(DType dtype, ThreadPool& pool, double dropout = 0) : base(small_config(), dtype, pool) {
    export_model(folder.path(), model::describe(small_config()), DType::kF32, base.parameters.weights())
        .value();
    const model::LowRank adapter{
        .rank = 4, .alpha = 8, .targets = {"q_proj", "o_proj", "up_proj"}, .dropout = dropout};
    decoder = whole(model::with_adapter(model::describe(small_config()), adapter).value());
    parameters.emplace(decoder, dtype, pool);
    parameters->load_frozen(model::open_weights(folder.path()).value(), true).value();
    parameters->initialize(3);
    network = Network::make(decoder, *parameters, links, {}, pool);
  }
  TempFolder folder;
  Model base;
  LocalDecoder decoder;
  Links links;
  std::optional<Parameters> parameters;
  std::unique_ptr<Network> network;
};

// B begins as 0, so that training begins with the base model: the loss has the same bits.
TEST(Adapter, BeginsAsTheBaseModel) {
  ThreadPool pool(2);
  const auto tokens = random_tokens(2, 19, 101, 5);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Adapted m(dtype, pool);
    EXPECT_EQ(m.network->evaluate({2, 19, tokens}), m.base.network->evaluate({2, 19, tokens}));
    // 4 x (in + out) of q, o (48 x 48) and up (80 x 48), in three layers.
    EXPECT_EQ(m.parameters->weights().size(), 3u * 4 * (96 + 96 + 128)) << "frozen weights have no f32 copy";
    EXPECT_EQ(m.parameters->gradients().size(), m.parameters->weights().size());
  }
}

// With dropout, of the loss under the masks of one step.
class AdapterSlope : public testing::TestWithParam<double> {};
INSTANTIATE_TEST_SUITE_P(Adapter, AdapterSlope, testing::Values(0.0, 0.3));

TEST_P(AdapterSlope, GradientIsTheSlopeOfTheLoss) {
  ThreadPool pool(2);
  Adapted m(DType::kF32, pool, GetParam());
  Parameters& parameters = *m.parameters;
  Philox rng(8);
  for (float& w : parameters.weights()) w += 0.1f * rng.normal();
  parameters.pack();
  const auto tokens = random_tokens(2, 19, 101, 6);
  const Sequences input{.sequences = 2, .length = 19, .tokens = tokens, .step = 3};
  m.network->train(input);
  const double norm = std::sqrt(parameters.squared_gradients());
  std::vector<float> direction(parameters.weights().size());
  double slope = 0;
  for (size_t i = 0; i < direction.size(); ++i) {
    direction[i] = rng.normal();
    slope += static_cast<double>(direction[i]) * parameters.gradients()[i];
  }
  const std::vector<float> at(parameters.weights().begin(), parameters.weights().end());
  const float h = 1e-4f;
  const auto loss_at = [&](float sign) {
    for (size_t i = 0; i < at.size(); ++i) parameters.weights()[i] = at[i] + sign * h * direction[i];
    parameters.pack();
    return m.network->train(input);
  };
  const double difference = (loss_at(1) - loss_at(-1)) / (2 * static_cast<double>(h));
  EXPECT_NEAR(difference, slope, 0.01 * norm);
}

// Another step has other masks, and so has another sequence of the batch; evaluation has none.
TEST(Adapter, DropoutIsOfTheStepAndOfTrainingAlone) {
  ThreadPool pool(2);
  const auto tokens = random_tokens(2, 19, 101, 6);
  Adapted none(DType::kF32, pool), some(DType::kF32, pool, 0.3);
  for (Adapted* m : {&none, &some}) {
    for (float& w : m->parameters->weights()) w += 0.1f;
    m->parameters->pack();
  }
  const auto loss = [&](int64_t step, int64_t first) {
    return some.network->train(
        {.sequences = 2, .length = 19, .tokens = tokens, .step = step, .first = first});
  };
  const double once = loss(3, 0);
  EXPECT_EQ(loss(3, 0), once);
  EXPECT_NE(loss(4, 0), once);
  EXPECT_NE(loss(3, 2), once);
  EXPECT_EQ(some.network->evaluate({2, 19, tokens}), none.network->evaluate({2, 19, tokens}));
}

// A base that stays in its blocks is what they say: unpacked for each product, it gives the same bits in f32
// as one that was unpacked once.
TEST(Adapter, AQuantizedBaseIsWhatItsBlocksSay) {
  ThreadPool pool(2);
  auto config = small_config();
  config.hidden_size = 64, config.intermediate_size = 96, config.head_dim = 16;
  const model::Decoder adapted =
      model::with_adapter(model::describe(config), {.rank = 4, .alpha = 8, .targets = {"all-linear"}})
          .value();
  const LocalDecoder decoder = whole(adapted);
  const auto source = std::make_shared<RandomWeights>(model::describe(config), DType::kQ8_0);
  const auto tokens = random_tokens(2, 19, 101, 5);
  std::vector<double> losses;
  std::vector<std::vector<float>> gradients;
  for (const bool keep_blocks : {true, false}) {
    Links links;
    Parameters parameters(decoder, DType::kF32, pool);
    parameters.load_frozen(source, keep_blocks).value();
    parameters.initialize(4);
    for (float& w : parameters.weights()) w += 0.01f;
    parameters.pack();
    const auto network = Network::make(decoder, parameters, links, {}, pool);
    losses.push_back(network->train({2, 19, tokens}));
    gradients.emplace_back(parameters.gradients().begin(), parameters.gradients().end());
  }
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_EQ(gradients[0], gradients[1]);
  EXPECT_GT(*std::ranges::max_element(gradients[0]), 0.0f);
}

// Each operation alone, and together.
std::vector<Recompute> sets_of_operations() {
  using enum Recomputed;
  std::vector<Recompute> sets = {Recompute::kSelective, Recompute::kEach,   {kQkv, kAttention},
                                 {kNorm, kGateUp},      {kSwiglu, kGateUp}, {kNorm, kExperts}};
  for (const auto& [name, part] : ConfigSet<Recompute>::parts) sets.push_back(part);
  return sets;
}

// What is forgotten and computed again makes the same gradients, to the bit.
TEST(Adapter, RecomputationChangesNoBit) {
  ThreadPool pool(2);
  const auto tokens = random_tokens(2, 19, 101, 6);
  std::vector<float> plain;
  std::vector<Recompute> sets = sets_of_operations();
  sets.insert(sets.begin(), {Recompute::kNone, Recompute::kFull});
  for (const auto& [dropout, splits] : {std::pair(0.0, false), {0.3, false}, {0.3, true}}) {
    plain.clear();
    for (const Recompute recompute : sets) {
      SCOPED_TRACE(fmt::format("{} with dropout {}{}", config_name(recompute), dropout,
                               splits ? ", weights' gradients later" : ""));
      Adapted m(DType::kBF16, pool, dropout);
      for (float& w : m.parameters->weights()) w += 0.01f;
      m.parameters->pack();
      m.network = Network::make(m.decoder, *m.parameters, m.links,
                                {.recompute = recompute, .splits_backward = splits}, pool);
      m.network->train({2, 19, tokens});
      const std::vector<float> gradients(m.parameters->gradients().begin(), m.parameters->gradients().end());
      if (plain.empty()) plain = gradients;
      EXPECT_EQ(gradients, plain);
    }
  }
}

TEST(Network, GradientIsTheSlopeOfTheLoss) {
  for (const bool qwen : {false, true}) {
    auto config = small_config(qwen ? "qwen3" : "llama");
    config.qk_norm = qwen, config.qkv_bias = !qwen, config.tied_embeddings = qwen;
    check_slope(config);
  }
}

// All experts are chosen: the choice itself has no slope.
TEST(Network, GradientThroughExpertsIsTheSlopeOfTheLoss) {
  for (const std::string family : {"qwen2_moe", "dots1"}) {
    auto config = small_mixture(family);
    config.moe.per_token = config.moe.experts, config.moe.normalised = true;
    check_slope(config);
  }
}

// An expert that may take one token of each sequence takes the first; evaluation knows no capacity.
TEST(Network, CapacityDropsWhatIsOverIt) {
  ThreadPool pool(2);
  const auto tokens = random_tokens(2, 24, 101, 3);
  const Sequences input{2, 24, tokens};
  Model all(small_mixture("dots1"), DType::kF32, pool);
  Model few(small_mixture("dots1"), DType::kF32, pool, {.router = {.capacity_factor = 0.01}});
  const double loss = all.network->train(input);
  EXPECT_NE(loss, few.network->train(input));
  EXPECT_EQ(loss, few.network->evaluate(input));
  const RouterReport of_all = all.network->take_routing().report(48);
  const RouterReport of_few = few.network->take_routing().report(48);
  EXPECT_EQ(of_all.dropped, 0);
  EXPECT_GT(of_few.dropped, 0.85);  // of 96 choices at least 96 - 2 * 4 are
  EXPECT_EQ(of_all.load[0], of_few.load[0]);
}

TEST(Network, RecomputationAndThreadsChangeNoBit) {
  ThreadPool one(1), three(3);
  for (const auto& config : {small_config(), small_mixture("qwen2_moe"), small_mixture("dots1")}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Model plain(config, dtype, three), frugal(config, dtype, three, {.recompute = Recompute::kFull});
      Model selective(config, dtype, three, {.recompute = Recompute::kSelective});
      Model lone(config, dtype, one);
      const auto tokens = random_tokens(3, 40, 101, 5);
      const Sequences input{3, 40, tokens};
      const double loss = plain.network->train(input);
      for (Model* other : {&frugal, &selective, &lone}) {
        EXPECT_EQ(loss, other->network->train(input));
        EXPECT_TRUE(std::ranges::equal(plain.parameters.gradients(), other->parameters.gradients()));
      }
      EXPECT_EQ(loss, plain.network->evaluate(input));
      if (!config.moe.any()) continue;  // whatever is computed again, a router's work is counted once
      const RouterReport report = plain.network->take_routing().report(120);
      EXPECT_EQ(report.load, frugal.network->take_routing().report(120).load);
      for (const auto& load : report.load) EXPECT_NEAR(load[0] + load[1] + load[2] + load[3], 4, 1e-12);
    }
  }
}

// Whatever of a layer's operations is forgotten, in whatever precision, with biases, head norms and experts:
// the loss and every gradient have the bits of a layer that keeps all.
TEST(Network, NoSetOfOperationsThatIsRunAgainChangesABit) {
  ThreadPool pool(2);
  auto biased = small_config("qwen3");
  biased.qk_norm = true, biased.qkv_bias = true;
  const auto tokens = random_tokens(3, 40, 101, 5);
  const Sequences input{3, 40, tokens};
  struct Format {
    DType dtype;
    Rounding rounding;
  };
  for (const auto& config : {small_config(), biased, small_mixture("qwen2_moe"), small_mixture("dots1")}) {
    for (const Format format :
         drawn(std::vector{Format{DType::kF32, Rounding::kNone}, Format{DType::kBF16, Rounding::kNone},
                           Format{DType::kF32, Rounding::kF16}, Format{DType::kF32, Rounding::kFp8Blocks},
                           Format{DType::kF32, Rounding::kFp8Tensors}},
               2)) {
      Model plain(config, format.dtype, pool, {}, format.rounding);
      const double loss = plain.network->train(input);
      for (const Recompute recompute : sets_of_operations()) {
        SCOPED_TRACE(config.family + " " + config_name(recompute));
        Model again(config, format.dtype, pool, {.recompute = recompute}, format.rounding);
        EXPECT_EQ(loss, again.network->train(input));
        EXPECT_TRUE(std::ranges::equal(plain.parameters.gradients(), again.parameters.gradients()));
        EXPECT_EQ(loss, again.network->evaluate(input));
      }
    }
  }
}

// A schedule that leaves the weights' gradients for later has them from what was made again before.
TEST(Network, WhatIsRunAgainIsThereForGradientsThatAreLeftForLater) {
  ThreadPool pool(2);
  const auto tokens = random_tokens(2, 24, 101, 6);
  for (const auto& config : {small_config(), small_mixture("dots1")}) {
    std::vector<Recompute> sets = sets_of_operations();
    sets.insert(sets.begin(), Recompute::kNone);
    std::vector<float> plain;
    for (const Recompute recompute : sets) {
      SCOPED_TRACE(config_name(recompute));
      Model m(config, DType::kBF16, pool, {.recompute = recompute, .splits_backward = true});
      const Network::Key key{.microbatch = 0, .chunk = 0};
      m.network->forward(key, {2, 24, tokens}, {}, Network::Gradient::kWanted, 1);
      m.network->backward(key, {});
      m.network->weight_gradients(key);
      m.network->release(key);
      if (plain.empty()) plain.assign(m.parameters.gradients().begin(), m.parameters.gradients().end());
      EXPECT_GT(*std::ranges::max_element(plain), 0.0f);
      EXPECT_TRUE(std::ranges::equal(plain, m.parameters.gradients()));
    }
  }
}

TEST(Network, OverfitsOneBatch) {
  ThreadPool pool(2);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Model m(small_config(), dtype, pool);
    const auto tokens = random_tokens(2, 24, 101, 9);
    Optimizer optimizer({}, flat_weights(m.decoder));
    double loss = 0;
    for (int64_t update = 0; update < 400; ++update) {
      m.parameters.clear_gradients();
      loss = m.network->train({2, 24, tokens}) / 48;
      if (loss < 0.01) break;
      optimizer.step(m.parameters.weights(), m.parameters.gradients(),
                     {.lr = 3e-3, .update = update, .gradient_scale = 1.0 / 48}, pool);
      m.parameters.pack();
    }
    EXPECT_LT(loss, 0.01) << kernels::dtype_name(dtype);
  }
}

// A format that rounds what is multiplied stays near f32, and nearer the more bits it has.
TEST(Network, RoundedFactorsStayNearF32) {
  ThreadPool pool(2);
  const auto tokens = random_tokens(2, 24, 101, 11);
  const Sequences input{2, 24, tokens};
  Model exact(small_config(), DType::kF32, pool);
  const double loss = exact.network->train(input);
  std::vector<double> errors;
  for (const Rounding rounding : {Rounding::kF16, Rounding::kFp8Blocks, Rounding::kFp8Tensors}) {
    Model m(small_config(), DType::kF32, pool, {}, rounding);
    const float scale = 1024;
    EXPECT_NEAR(m.network->train(input, scale) / loss, 1, 0.02);
    double error = 0, size = 0;
    for (size_t i = 0; i < m.parameters.gradients().size(); ++i) {
      const double want = exact.parameters.gradients()[i], got = m.parameters.gradients()[i] / scale;
      error += (got - want) * (got - want), size += want * want;
    }
    errors.push_back(std::sqrt(error / size));
  }
  EXPECT_GT(errors[0], 0);
  EXPECT_LT(errors[0], 0.01);
  EXPECT_GT(errors[1], errors[0]);
  EXPECT_LT(errors[1], 0.35);
  EXPECT_LT(errors[2], 0.35);
}

}  // namespace
}  // namespace flywheel::train
