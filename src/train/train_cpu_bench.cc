// Training a 15-million-parameter Llama in bf16 on 2 workers of this machine, through the controller and its
// log as any run. Prints one JSON line; bench/train_cpu runs it beside PyTorch.
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/philox.h"
#include "data/shards.h"
#include "runtime/worker.h"
#include "train/run_training.h"

using namespace flywheel;

namespace {

constexpr int64_t kVocabulary = 32000, kWorkers = 2, kSequencesPerWorker = 4, kLength = 256;

void write_random_tokens(const std::string& folder, int64_t tokens) {
  auto writer = data::ShardWriter::create(folder, {.vocab_size = kVocabulary}).value();
  Philox rng(1);
  std::vector<int32_t> document(1000);
  for (int64_t written = 0; written < tokens; written += std::ssize(document)) {
    for (int32_t& token : document) token = static_cast<int32_t>(rng.below(kVocabulary));
    writer.add(document).value();
  }
  (void)writer.seal().value();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "worker") return runtime::worker_main();
  const int64_t steps = argc > 1 ? std::strtoll(argv[1], nullptr, 10) : 30;
  init_logging("warn");
  const TempFolder folder;
  setenv("FLYWHEEL_HOME", (folder / "home").c_str(), 1);
  write_random_tokens(folder / "tokens", 200'000);
  train::TrainConfig config;
  config.steps = steps;
  config.precision = train::Precision::kBF16;
  config.model = {
      .hidden_size = 288, .intermediate_size = 768, .num_layers = 6, .num_heads = 6, .max_positions = 256};
  config.data.train = folder / "tokens";
  config.batch = {.sequences = kWorkers * kSequencesPerWorker, .length = kLength};
  config.mesh = {.data = kWorkers, .threads = 1};
  const auto report = train::run_training(config, {.fresh = true}, {});
  if (!report.ok()) {
    std::fprintf(stderr, "%s\n", report.error().to_string().c_str());
    return 1;
  }
  std::printf("%s\n", Json{{"tokens_per_second", report->tokens_per_second.value_or(0)},
                           {"limit_share", report->limit_share.value_or(0)},
                           {"parameters", report->parameters},
                           {"steps", report->steps},
                           {"loss", report->loss}}
                          .dump()
                          .c_str());
}
