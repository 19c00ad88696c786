#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <mutex>

#include "base/deadline.h"
#include "engine/model_for_tests.h"
#include "kernels/attention.h"

namespace flywheel::engine {
namespace {

using kernels::DType;

// What a request gave, put together from its events.
struct Outcome {
  std::map<int, std::vector<GeneratedToken>> tokens;
  std::map<int, FinishReason> finish;
  std::map<int, int64_t> cached;
  std::vector<GeneratedToken> prompt;
  std::string error;
};

// Gathers events; wait() returns when the last one has come.
class Collector {
 public:
  EventCallback callback() {
    return [state = state_](const GenerationEvent& event) {
      const std::lock_guard lock(state->mutex);
      EXPECT_FALSE(state->done) << "an event after the last";
      auto& tokens = state->outcome.tokens[event.index];
      tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
      state->outcome.cached[event.index] = event.cached_tokens;
      if (!event.prompt.empty()) {
        EXPECT_EQ(event.index, 0);
        EXPECT_TRUE(state->outcome.prompt.empty()) << "a prompt twice";
        EXPECT_EQ(state->outcome.tokens.size(), 1u) << "another sequence came before";
        state->outcome.prompt = event.prompt;
      }
      if (event.finish) {
        EXPECT_EQ(state->outcome.finish.count(event.index), 0u) << "finished twice";
        state->outcome.finish[event.index] = *event.finish;
        state->outcome.error = event.error;
        EXPECT_EQ(event.output_tokens, static_cast<int64_t>(tokens.size()));
      }
      state->done = event.last;
      state->arrived.notify_all();
    };
  }
  Outcome wait() {
    std::unique_lock lock(state_->mutex);
    EXPECT_TRUE(state_->arrived.wait_for(lock, std::chrono::seconds(60), [&] { return state_->done; }))
        << "no last event in 60 s";
    return state_->outcome;
  }
  bool wait_for_tokens(size_t count) {
    std::unique_lock lock(state_->mutex);
    return state_->arrived.wait_for(lock, std::chrono::seconds(60), [&] {
      return state_->done || state_->outcome.tokens[0].size() >= count;
    });
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable arrived;
    Outcome outcome;
    bool done = false;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

Outcome generate(Engine& engine, const GenerationRequest& request) {
  Collector collector;
  const auto id = engine.submit(request, collector.callback());
  EXPECT_TRUE(id.ok()) << id.error().message;
  return collector.wait();
}

// Tokens and log-probabilities, bit for bit.
std::string bits(const Outcome& outcome) {
  std::string text;
  for (const auto& [index, tokens] : outcome.tokens) {
    text += fmt::format("sequence {} {}\n", index, finish_reason_name(outcome.finish.at(index)));
    for (const GeneratedToken& token : tokens) {
      text += fmt::format("{} {:08x}", token.id, kernels::bits_of(token.logprob));
      for (const TokenLogprob& top : token.top)
        text += fmt::format(" {}:{:08x}", top.id, kernels::bits_of(top.logprob));
      text += "\n";
    }
  }
  return text;
}

// Small enough that a few requests fill the cache.
EngineConfig cramped(int64_t blocks, int64_t bytes_per_block) {
  EngineConfig config;
  config.kv_cache_bytes = blocks * bytes_per_block;
  config.seed = 1;
  return config;
}

int64_t block_bytes(const model::DecoderConfig& c, DType kv) {
  return kernels::KvLayout{kv, c.num_kv_heads, c.head_dim}.block_bytes() * c.num_layers;
}

GenerationRequest random_request(Philox& random, int64_t vocab) {
  GenerationRequest request;
  const uint64_t prompt = 1 + random.below(90);
  for (uint64_t i = 0; i < prompt; ++i) {
    request.prompt.push_back(static_cast<TokenId>(random.below(static_cast<uint64_t>(vocab))));
  }
  request.max_tokens = 1 + static_cast<int64_t>(random.below(40));
  request.sampling.seed = random.next_u64();
  request.sampling.temperature = random.below(3) == 0 ? 0.0f : 0.5f + random.uniform();
  if (random.below(2) == 0) request.sampling.top_p = 0.9f;
  if (random.below(3) == 0) request.sampling.top_k = 20;
  if (random.below(3) == 0) request.sampling.frequency_penalty = 0.3f;
  if (random.below(4) == 0) request.n = 3;
  request.logprobs = static_cast<int>(random.below(4));
  return request;
}

// Every sequence of a request ends, with the reason, and the engine goes on.
TEST(Engine, AModelThatGivesNoNumbersSaysSo) {
  model::OpenModel model = random_model(tiny_config(), DType::kF32, 3);
  auto source = std::make_shared<MemorySource>();
  for (const model::TensorInfo& info : model.source->tensors()) {
    std::vector<float> values(static_cast<size_t>(info.rows() * info.cols()), std::nanf(""));
    source->add(info.name, info.shape, DType::kF32, values);
  }
  model.source = source;
  auto engine = Engine::open({}, model).value();
  for (const int n : {1, 3}) {
    GenerationRequest request{.prompt = {1, 2}, .max_tokens = 4, .n = n};
    request.sampling.temperature = n == 1 ? 0.0f : 1.0f;
    const Outcome outcome = generate(*engine, request);
    EXPECT_EQ(std::ssize(outcome.finish), n);
    for (const auto& [index, finish] : outcome.finish) {
      EXPECT_EQ(finish, FinishReason::kError) << index;
      EXPECT_TRUE(outcome.tokens.at(index).empty());
    }
    EXPECT_THAT(outcome.error, testing::HasSubstr("the model's logits are not numbers after 2 tokens"));
  }
}

TEST(Engine, TellsTheReferenceStory) {
  if (stories_folder().empty()) GTEST_SKIP() << "no test data (FLYWHEEL_TEST_DATA)";
  auto engine = Engine::open({}, stories_model()).value();
  const Outcome outcome = generate(
      *engine, {.prompt = {1}, .sampling = {.temperature = 0}, .max_tokens = 255, .ignore_end_tokens = true});
  const std::vector<std::string> vocabulary = stories_vocabulary();
  std::string text;
  for (const GeneratedToken& token : outcome.tokens.at(0)) {
    const std::string& piece = vocabulary.at(static_cast<size_t>(token.id));
    text += piece == "<0x0A>" ? "\n" : piece;
  }
  // The text that stands in the model's own description, and is the same with any f32 implementation.
  EXPECT_THAT(
      text,
      testing::StartsWith(
          " Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
          "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
          "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She "
          "said, \"I want to play with your ball, but I can't find it.\"\n"));
  EXPECT_EQ(outcome.finish.at(0), FinishReason::kLength);
}

// The promise: a request's tokens and log-probabilities have the same bits alone and in any company, with
// any chunks, with preemptions, with and without the prefix cache.
TEST(Engine, ResultsDoNotDependOnCompany) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    SCOPED_TRACE(kernels::dtype_name(dtype));
    const model::DecoderConfig config = tiny_config();
    Philox random(11);
    std::vector<GenerationRequest> requests;
    for (int i = 0; i < 18; ++i) {
      requests.push_back(random_request(random, config.vocab_size));
      // Some begin alike, so that blocks are shared.
      if (i % 3 == 0 && i > 0) requests.back().prompt = requests[static_cast<size_t>(i) - 1].prompt;
    }
    std::vector<std::string> alone;
    {
      EngineConfig one = {.max_running = 1, .prefix_cache = false};
      auto engine = Engine::open(one, random_model(config, dtype, 5)).value();
      for (const GenerationRequest& request : requests) alone.push_back(bits(generate(*engine, request)));
    }
    uint64_t preemptions = 0, hits = 0;
    for (const int64_t step_tokens : {7, 512}) {
      for (const bool prefix_cache : {false, true}) {
        EngineConfig crowd = cramped(12, block_bytes(config, dtype));
        crowd.step_tokens = step_tokens, crowd.prefix_cache = prefix_cache;
        auto engine = Engine::open(crowd, random_model(config, dtype, 5)).value();
        std::vector<Collector> collectors(requests.size());
        for (size_t i = 0; i < requests.size(); ++i) {
          ASSERT_TRUE(engine->submit(requests[i], collectors[i].callback()).ok());
        }
        for (size_t i = 0; i < requests.size(); ++i) {
          EXPECT_EQ(bits(collectors[i].wait()), alone[i]) << "request " << i << ", steps of " << step_tokens;
        }
        preemptions += engine->stats().preemptions;
        hits += engine->stats().prefix_hit_tokens;
      }
    }
    EXPECT_GT(preemptions, 0u) << "the cache was not small enough to test anything";
    EXPECT_GT(hits, 0u);
  }
}

// A prompt's log-probabilities have the bits that its tokens had when they were generated: alone, in any
// chunks, in company, with preemptions, and beside a prefix cache that holds it.
TEST(Engine, APromptIsScoredAsItWasGenerated) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(kernels::dtype_name(dtype));
    const model::DecoderConfig config = tiny_config();
    GenerationRequest written{
        .prompt = {5, 6, 7}, .max_tokens = 70, .ignore_end_tokens = true, .logprobs = 2};
    written.sampling.seed = 3;
    auto alone = Engine::open({}, random_model(config, dtype, 5)).value();
    const std::vector<GeneratedToken> generated = generate(*alone, written).tokens.at(0);
    ASSERT_EQ(generated.size(), 70u);
    GenerationRequest scored{
        .prompt = written.prompt, .max_tokens = 0, .logprobs = 2, .prompt_logprobs = true};
    for (const GeneratedToken& token : generated) scored.prompt.push_back(token.id);

    const auto expect_scores = [&](const Outcome& outcome) {
      ASSERT_EQ(outcome.prompt.size(), scored.prompt.size());
      EXPECT_EQ(outcome.prompt[0].id, 5);
      EXPECT_TRUE(outcome.prompt[0].top.empty());
      for (size_t i = 0; i < generated.size(); ++i) {
        const GeneratedToken &wanted = generated[i], &got = outcome.prompt[i + 3];
        EXPECT_EQ(got.id, wanted.id);
        EXPECT_EQ(kernels::bits_of(got.logprob), kernels::bits_of(wanted.logprob)) << i;
        ASSERT_EQ(got.top.size(), 2u);
        for (size_t t = 0; t < 2; ++t) {
          EXPECT_EQ(got.top[t].id, wanted.top[t].id);
          EXPECT_EQ(kernels::bits_of(got.top[t].logprob), kernels::bits_of(wanted.top[t].logprob));
        }
      }
    };
    for (const int64_t step_tokens : {1, 7, 512}) {
      EngineConfig crowd = cramped(12, block_bytes(config, dtype));
      crowd.step_tokens = step_tokens, crowd.max_running = 5;
      auto engine = Engine::open(crowd, random_model(config, dtype, 5)).value();
      GenerationRequest others = scored;  // with new tokens behind it, and twice
      others.max_tokens = 6, others.n = 2, others.sampling.seed = 4;
      GenerationRequest plain = others;
      plain.prompt_logprobs = false;
      std::vector<Collector> collectors(4);
      const std::vector<GenerationRequest> requests = {plain, scored, others, scored};
      for (size_t i = 0; i < requests.size(); ++i)
        ASSERT_TRUE(engine->submit(requests[i], collectors[i].callback()).ok());
      const Outcome of_plain = collectors[0].wait();
      EXPECT_TRUE(of_plain.prompt.empty());
      for (const size_t i : {1, 3}) {
        const Outcome outcome = collectors[i].wait();
        expect_scores(outcome);
        EXPECT_TRUE(outcome.tokens.at(0).empty());
        EXPECT_EQ(outcome.finish.at(0), FinishReason::kLength);
      }
      const Outcome both = collectors[2].wait();
      expect_scores(both);
      EXPECT_EQ(bits(both), bits(of_plain));
      EXPECT_EQ(both.tokens.size(), 2u);
    }
  }
  // A prompt of one token has nothing to score; without logprobs nobody says how many likeliest ones.
  auto engine = Engine::open({}, random_model(tiny_config(), DType::kF32, 5)).value();
  const Outcome one =
      generate(*engine, {.prompt = {9}, .max_tokens = 0, .logprobs = 0, .prompt_logprobs = true});
  ASSERT_EQ(one.prompt.size(), 1u);
  EXPECT_EQ(one.prompt[0].id, 9);
  const auto refused =
      engine->submit({.prompt = {9}, .prompt_logprobs = true}, [](const GenerationEvent&) {});
  EXPECT_THAT(refused.error().message, testing::StartsWith("prompt_logprobs: needs logprobs"));
}

TEST(Engine, CancelledAtAnyMomentGivesBackItsBlocks) {
  const model::DecoderConfig config = tiny_config();
  EngineConfig crowd = cramped(40, block_bytes(config, DType::kF32));
  crowd.step_tokens = 16;
  auto engine = Engine::open(crowd, random_model(config, DType::kF32, 5)).value();
  Philox random(8);
  for (int round = 0; round < 60; ++round) {
    std::vector<Collector> collectors(4);
    std::vector<RequestId> ids;
    for (Collector& collector : collectors) {
      GenerationRequest request = random_request(random, config.vocab_size);
      request.max_tokens = 300;
      ids.push_back(engine->submit(request, collector.callback()).value());
    }
    collectors[0].wait_for_tokens(random.below(5));
    for (const RequestId id : ids) engine->cancel(id);
    for (Collector& collector : collectors) {
      for (const auto& [index, reason] : collector.wait().finish) {
        EXPECT_TRUE(reason == FinishReason::kCancelled || reason == FinishReason::kLength);
      }
    }
  }
  engine->cancel(123456);  // nobody: ignored
  const Deadline deadline = Deadline::after_ms(10'000);
  while ((engine->stats().free_blocks < engine->stats().blocks || engine->stats().running > 0) &&
         !deadline.expired()) {
    std::this_thread::yield();
  }
  EXPECT_EQ(engine->stats().free_blocks, engine->stats().blocks);
  EXPECT_EQ(engine->stats().waiting, 0);
}

TEST(Engine, RefusesWhatCanNeverFinish) {
  const model::DecoderConfig config = tiny_config();
  auto engine =
      Engine::open(cramped(4, block_bytes(config, DType::kF32)), random_model(config, DType::kF32, 5))
          .value();
  EXPECT_EQ(engine->max_context_tokens(), 64);
  const auto refusal = [&](GenerationRequest request) {
    const auto id = engine->submit(std::move(request), [](const GenerationEvent&) { FAIL(); });
    return id.ok() ? std::string("accepted") : id.error().message;
  };
  EXPECT_THAT(refusal({}), testing::HasSubstr("prompt: is empty"));
  EXPECT_THAT(refusal({.prompt = std::vector<TokenId>(64, 1)}), testing::HasSubstr("prompt: has 64 tokens"));
  EXPECT_THAT(refusal({.prompt = {1, 2}, .max_tokens = 63}), testing::HasSubstr("max_tokens: 63"));
  EXPECT_THAT(refusal({.prompt = {97}}), testing::HasSubstr("token 97"));
  EXPECT_THAT(refusal({.prompt = {1}, .sampling = {.temperature = -1}}),
              testing::HasSubstr("temperature: -1"));
  EXPECT_THAT(refusal({.prompt = {1}, .sampling = {.temperature = std::nanf("")}}),
              testing::HasSubstr("temperature"));
  EXPECT_THAT(refusal({.prompt = {1}, .sampling = {.top_p = 1.5f}}), testing::HasSubstr("top_p"));
  GenerationRequest request{.prompt = {1}};
  for (const size_t bytes : {0, 5000}) {
    request.stop = {std::string(bytes, 'x')};
    EXPECT_THAT(refusal(request), testing::StartsWith(fmt::format("stop: a string of {} bytes", bytes)));
  }
  EXPECT_THAT(refusal({.prompt = {1}, .n = 0}), testing::HasSubstr("n: 0"));
  // The longest that fits does finish, to the last token.
  const Outcome outcome = generate(*engine, {.prompt = std::vector<TokenId>(30, 1), .max_tokens = 34});
  EXPECT_EQ(outcome.tokens.at(0).size(), 34u);
}

TEST(Engine, AFullQueueSaysSo) {
  const model::DecoderConfig config = tiny_config();
  EngineConfig small = cramped(32, block_bytes(config, DType::kF32));
  small.max_running = 1, small.max_waiting = 2;
  auto engine = Engine::open(small, random_model(config, DType::kF32, 5)).value();
  std::vector<Collector> collectors(50);
  int refused = 0;
  for (Collector& collector : collectors) {
    const auto id = engine->submit({.prompt = {1}, .max_tokens = 400}, collector.callback());
    if (id.ok()) continue;
    EXPECT_EQ(id.error().code, ErrorCode::kFull);
    ++refused;
  }
  EXPECT_GE(refused, 40);
  EXPECT_TRUE(engine->healthy());
  // What the queue could not hold were it empty is not told to wait.
  const auto never = engine->submit({.prompt = {1}, .n = 3}, [](const GenerationEvent&) { FAIL(); });
  EXPECT_EQ(never.error().code, ErrorCode::kInvalid);
  EXPECT_THAT(never.error().message, testing::StartsWith("n: 3 sequences; at most 2"));
}

TEST(Engine, TopPOfZeroIsTheLikeliestToken) {
  auto engine = Engine::open({}, random_model(tiny_config(), DType::kF32, 5)).value();
  GenerationRequest request{.prompt = {3, 4, 5}, .sampling = {.temperature = 0}, .max_tokens = 30};
  const std::string greedy = bits(generate(*engine, request));
  request.sampling = {.temperature = 2, .top_p = 0, .seed = 1};
  EXPECT_EQ(bits(generate(*engine, request)), greedy);
}

TEST(Engine, StopTokensAndMinTokens) {
  const model::DecoderConfig config = tiny_config();
  auto engine = Engine::open({}, random_model(config, DType::kF32, 5)).value();
  const GenerationRequest plain{.prompt = {3, 4, 5}, .sampling = {.temperature = 0}, .max_tokens = 30};
  const Outcome all = generate(*engine, plain);
  const TokenId sixth = all.tokens.at(0)[5].id;
  size_t first = 0;
  while (all.tokens.at(0)[first].id != sixth) ++first;
  GenerationRequest stopped = plain;
  stopped.stop_tokens = {sixth};
  const Outcome early = generate(*engine, stopped);
  EXPECT_EQ(early.finish.at(0), FinishReason::kStop);
  EXPECT_EQ(early.tokens.at(0).size(), first + 1);
  stopped.min_tokens = 20;
  const Outcome late = generate(*engine, stopped);
  EXPECT_GE(late.tokens.at(0).size(), 20u);
}

TEST(Engine, SiblingsShareThePromptAndDiffer) {
  const model::DecoderConfig config = tiny_config();
  auto engine = Engine::open({}, random_model(config, DType::kF32, 5)).value();
  GenerationRequest request{.prompt = std::vector<TokenId>(64, 7), .max_tokens = 20, .n = 4};
  request.sampling.seed = 9;
  const Outcome outcome = generate(*engine, request);
  ASSERT_EQ(outcome.tokens.size(), 4u);
  for (int index = 1; index < 4; ++index) EXPECT_EQ(outcome.cached.at(index), 48);
  const auto ids = [&](int index) {
    std::vector<TokenId> list;
    for (const GeneratedToken& token : outcome.tokens.at(index)) list.push_back(token.id);
    return list;
  };
  EXPECT_NE(ids(0), ids(1));
  EXPECT_NE(ids(1), ids(2));
}

TEST(Engine, EndsEveryRequestWhenItIsClosed) {
  const model::DecoderConfig config = tiny_config();
  std::vector<Collector> collectors(5);
  {
    auto engine = Engine::open({}, random_model(config, DType::kF32, 5)).value();
    for (Collector& collector : collectors) {
      ASSERT_TRUE(engine->submit({.prompt = {1}, .max_tokens = 500}, collector.callback()).ok());
    }
  }
  for (Collector& collector : collectors) EXPECT_EQ(collector.wait().finish.size(), 1u);
}

TEST(Engine, StopEndsEverythingOnce) {
  const EngineConfig one_at_a_time = {.max_running = 1};  // the last cannot be done when it is stopped
  auto engine = Engine::open(one_at_a_time, random_model(tiny_config(), DType::kF32, 5)).value();
  std::vector<Collector> collectors(200);
  for (Collector& collector : collectors) {
    ASSERT_TRUE(engine->submit({.prompt = {1}, .max_tokens = 500, .n = 2}, collector.callback()).ok());
  }
  collectors[0].wait_for_tokens(1);
  std::thread other([&] { engine->stop(); });
  engine->stop();
  other.join();
  for (Collector& collector : collectors) EXPECT_EQ(collector.wait().finish.size(), 2u);
  EXPECT_EQ(collectors.back().wait().finish.at(1), FinishReason::kCancelled);
  EXPECT_EQ(engine->stats().free_blocks, engine->stats().blocks);
  EXPECT_EQ(engine->submit({.prompt = {1}}, [](const GenerationEvent&) {}).error().code,
            ErrorCode::kUnavailable);
  engine->stop();
}

// A callback that throws is a bug elsewhere; the engine then says that it is dead, and why.
TEST(Engine, ADeadEngineIsNotHealthy) {
  const model::DecoderConfig config = tiny_config();
  auto engine = Engine::open({}, random_model(config, DType::kF32, 5)).value();
  Collector other;
  ASSERT_TRUE(engine->submit({.prompt = {1}, .max_tokens = 500}, other.callback()).ok());
  ASSERT_TRUE(engine
                  ->submit({.prompt = {2}, .max_tokens = 5},
                           [thrown = false](const GenerationEvent&) mutable {
                             if (std::exchange(thrown, true)) return;
                             throw std::runtime_error("a broken caller");
                           })
                  .ok());
  const Outcome outcome = other.wait();
  EXPECT_EQ(outcome.finish.at(0), FinishReason::kError);
  EXPECT_EQ(outcome.error, "a broken caller");
  const Deadline deadline = Deadline::after_ms(10'000);
  while (engine->healthy() && !deadline.expired()) std::this_thread::yield();
  EXPECT_THAT(engine->why_unhealthy(), testing::HasSubstr("a broken caller"));
  const auto refused = engine->submit({.prompt = {1}}, [](const GenerationEvent&) {});
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
}

TEST(Engine, RefusesWhatDoesNotFitIntoMemory) {
  EngineConfig config;
  config.max_context_tokens = 512;
  config.kv_cache_bytes = 4096;
  const auto engine = Engine::open(config, random_model(tiny_config(), DType::kF32, 5));
  ASSERT_FALSE(engine.ok());
  EXPECT_THAT(engine.error().message, testing::HasSubstr("a request of 512 tokens needs"));
  config = {.max_context_tokens = 513};
  EXPECT_THAT(Engine::open(config, random_model(tiny_config(), DType::kF32, 5)).error().message,
              testing::HasSubstr("more than the model's 512"));
  config = {.dtype = "q4_1"};
  EXPECT_THAT(Engine::open(config, random_model(tiny_config(), DType::kF32, 5)).error().message,
              testing::HasSubstr("dtype: \"q4_1\""));
}

}  // namespace
}  // namespace flywheel::engine
