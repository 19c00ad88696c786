// How fast the engine reads a prompt and writes an answer, and how well the model predicts a text; one JSON
// line each. bench/decode and bench/prefill run it beside their peer.
//
//   engine_speed_bench prefill MODEL --tokens 512     best of several, prompts without a common beginning
//   engine_speed_bench decode MODEL --tokens 128      after a prompt of 32
//   engine_speed_bench perplexity MODEL --text FILE --chunks 8    over chunks of 512 tokens, each from
//   nothing
#include <algorithm>
#include <charconv>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>

#include "base/deadline.h"
#include "base/file.h"
#include "base/json.h"
#include "base/philox.h"
#include "engine/engine.h"
#include "engine/executor.h"
#include "kernels/peak.h"
#include "model/tokenizer.h"

using namespace flywheel;
using namespace flywheel::engine;

namespace {

constexpr int64_t kChunkTokens = 512;

struct Arguments {
  std::string mode, model, text;
  int64_t tokens = 512, rounds = 5, chunks = 8;
  int threads = 0;  // 0: one per core
};

struct Timing {
  double to_first_s = 0, rest_s = 0;
  int64_t rest_tokens = 0;
};

Timing time_one(Engine& engine, std::vector<TokenId> prompt, int64_t max_tokens) {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  Timing timing;
  int64_t seen = 0;
  const Stopwatch watch;
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.max_tokens = max_tokens;
  request.ignore_end_tokens = true;
  engine
      .submit(std::move(request),
              [&](const GenerationEvent& event) {
                const std::lock_guard lock(mutex);
                if (seen == 0 && event.output_tokens > 0) timing.to_first_s = watch.seconds();
                if (seen == 0) timing.rest_tokens = -event.output_tokens;
                seen = std::max(seen, event.output_tokens);
                if (event.last) {
                  timing.rest_s = watch.seconds() - timing.to_first_s;
                  timing.rest_tokens += seen;
                  done = true;
                  changed.notify_one();
                }
              })
      .value_or_throw("submit");
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return done; });
  return timing;
}

std::vector<TokenId> random_prompt(int64_t tokens, int64_t vocab, uint64_t stream) {
  Philox rng(11, stream);
  std::vector<TokenId> prompt;
  for (int64_t i = 0; i < tokens; ++i) {
    prompt.push_back(
        static_cast<TokenId>(100 + rng.below(static_cast<uint64_t>(std::min<int64_t>(vocab, 20000) - 100))));
  }
  return prompt;
}

// Bytes of weights that one generated token reads, and multiply-adds of one prompt token.
std::pair<double, double> cost_of(const model::Decoder& decoder, const model::WeightSource& source) {
  double bytes = 0, macs = 0;
  for (const model::Step& step : decoder.steps) {
    if (step.op != model::Op::kLinear && step.op != model::Op::kLogits) continue;
    const model::TensorInfo* info = source.find(decoder.weights[static_cast<size_t>(step.weight)].name);
    if (info == nullptr) continue;
    bytes += static_cast<double>(info->rows() * kernels::row_bytes(info->dtype, info->cols()));
    if (step.op == model::Op::kLinear) macs += static_cast<double>(info->elements());
  }
  return {bytes, macs};
}

Json measure(const Arguments& args) {
  EngineConfig config;
  config.model = args.model;
  config.prefix_cache = false;
  config.max_context_tokens = 2048;
  config.seed = 1;
  auto engine = Engine::open(config).value_or_throw(args.model);
  const model::OpenModel& model = engine->model();
  const auto [bytes, macs] = cost_of(model.decoder, *model.source);
  ThreadPool& pool = compute_pool();
  const bool prefill = args.mode == "prefill";
  double best = 0;
  time_one(*engine, random_prompt(64, model.decoder.config.vocab_size, 99), 8);
  for (int64_t round = 0; round < args.rounds; ++round) {
    const Timing t = time_one(*engine,
                              random_prompt(prefill ? args.tokens : 32, model.decoder.config.vocab_size,
                                            static_cast<uint64_t>(round)),
                              prefill ? 1 : args.tokens);
    best = std::max(best, prefill ? static_cast<double>(args.tokens) / t.to_first_s
                                  : static_cast<double>(t.rest_tokens) / t.rest_s);
  }
  // int8 dot products do twice the multiply-adds of bf16 ones in a vector.
  const double limit = prefill ? kernels::peak_flops(kernels::DType::kBF16, pool) / macs
                               : kernels::peak_read_bytes_per_second(pool) / bytes;
  return {{"tokens_per_second", best}, {"limit_tokens_per_second", limit}, {"threads", pool.size()}};
}

double negative_log_likelihood(const float* logits, int64_t vocab, TokenId next) {
  const float most = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(logits[v] - most));
  return std::log(sum) + most - static_cast<double>(logits[next]);
}

Json perplexity(const Arguments& args) {
  const model::OpenModel model = model::open_model(args.model).value_or_throw(args.model);
  const std::string text = read_file(args.text).value_or_throw(args.text);
  std::vector<TokenId> tokens = model.tokenizer->encode(text);
  ThreadPool& pool = compute_pool();
  auto weights =
      model::load_decoder_weights(model.decoder, model.source, {}, pool).value_or_throw(args.model);
  const int64_t vocab = model.decoder.config.vocab_size;
  Executor executor(model.decoder, std::move(weights),
                    {.max_tokens = kChunkTokens,
                     .max_logit_rows = kChunkTokens,
                     .max_positions = kChunkTokens,
                     .num_blocks = kChunkTokens / kernels::kKvBlockTokens,
                     .kv_dtype = kernels::DType::kF16},
                    pool);
  std::vector<int32_t> table(kChunkTokens / kernels::kKvBlockTokens);
  std::iota(table.begin(), table.end(), 0);
  Batch batch;
  batch.positions_T.resize(kChunkTokens);
  std::iota(batch.positions_T.begin(), batch.positions_T.end(), 0);
  batch.logit_rows = batch.positions_T;
  batch.sequences = {{.block_table = table.data(), .first_row = 0, .tokens = kChunkTokens, .position = 0}};
  double total = 0;
  int64_t count = 0;
  const int64_t chunks = std::min<int64_t>(args.chunks, static_cast<int64_t>(tokens.size()) / kChunkTokens);
  for (int64_t c = 0; c < chunks; ++c) {
    const TokenId* chunk = tokens.data() + c * kChunkTokens;
    batch.ids_T.assign(chunk, chunk + kChunkTokens);
    const float* logits = executor.forward(batch);
    total += pool.parallel_sum(kChunkTokens - 1, 16, [&](int64_t begin, int64_t end) {
      double sum = 0;
      for (int64_t i = begin; i < end; ++i)
        sum += negative_log_likelihood(logits + i * vocab, vocab, chunk[i + 1]);
      return sum;
    });
    count += kChunkTokens - 1;
  }
  uint64_t mixed = 0;  // the peer must have seen the same tokens
  for (int64_t i = 0; i < chunks * kChunkTokens; ++i) {
    mixed = mixed * 31 + static_cast<uint64_t>(tokens[static_cast<size_t>(i)]);
  }
  return {{"perplexity", std::exp(total / static_cast<double>(std::max<int64_t>(count, 1)))},
          {"tokens", count},
          {"tokens_fingerprint", fmt::format("{:016x}", mixed)}};
}

Arguments parse(int argc, char** argv) {
  Arguments args;
  if (argc < 3)
    throw UserError(
        "",
        "engine_speed_bench prefill|decode|perplexity MODEL [--threads N] [--tokens N] [--rounds N] [--text "
        "FILE] [--chunks N]");
  args.mode = argv[1], args.model = argv[2];
  for (int i = 3; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    const auto number = [&] {
      int64_t read = 0;
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), read);
      if (error != std::errc() || end != value.data() + value.size()) throw UserError(flag, "needs a number");
      return read;
    };
    if (flag == "--tokens") {
      args.tokens = number();
    } else if (flag == "--rounds") {
      args.rounds = number();
    } else if (flag == "--chunks") {
      args.chunks = number();
    } else if (flag == "--threads") {
      args.threads = static_cast<int>(number());
    } else if (flag == "--text") {
      args.text = value;
    } else {
      throw UserError(flag, "no such flag");
    }
  }
  return args;
}

}  // namespace

int main(int argc, char** argv) try {
  const Arguments args = parse(argc, argv);
  set_compute_threads(args.threads);
  const Json result = args.mode == "perplexity" ? perplexity(args) : measure(args);
  std::printf("%s\n", result.dump().c_str());
  return 0;
} catch (const UserError& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
