#include "train/network.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/philox.h"
#include "kernels/variant.h"
#include "train/optimizer.h"

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
TEST(Network, GradientIsTheSlopeOfTheLoss) {
  ThreadPool pool(2);
  for (const bool qwen : {false, true}) {
    auto config = small_config(qwen ? "qwen3" : "llama");
    config.qk_norm = qwen, config.qkv_bias = !qwen, config.tied_embeddings = qwen;
    Model m(config, DType::kF32, pool);
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
}

TEST(Network, RecomputationAndThreadsChangeNoBit) {
  ThreadPool one(1), three(3);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Model plain(small_config(), dtype, three),
        frugal(small_config(), dtype, three, {.recompute = Recompute::kFull});
    Model selective(small_config(), dtype, three, {.recompute = Recompute::kSelective});
    Model lone(small_config(), dtype, one);
    const auto tokens = random_tokens(3, 40, 101, 5);
    const Sequences input{3, 40, tokens};
    const double loss = plain.network->train(input);
    EXPECT_EQ(loss, frugal.network->train(input));
    EXPECT_EQ(loss, selective.network->train(input));
    EXPECT_EQ(loss, lone.network->train(input));
    EXPECT_EQ(loss, plain.network->evaluate(input));
    EXPECT_TRUE(std::ranges::equal(plain.parameters.gradients(), frugal.parameters.gradients()));
    EXPECT_TRUE(std::ranges::equal(plain.parameters.gradients(), selective.parameters.gradients()));
    EXPECT_TRUE(std::ranges::equal(plain.parameters.gradients(), lone.parameters.gradients()));
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
