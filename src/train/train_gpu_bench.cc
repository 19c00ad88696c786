// Training a Llama in bf16 on one GPU, through the controller and its log as any run. Prints one JSON line;
// bench/train_gpu runs it beside PyTorch.
//
//   train_train_gpu_bench '{"hidden_size": 768, ..., "sequences": 64, "steps": 30}'
//   train_train_gpu_bench --has-gpu          exit 0, or 77 without one
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/philox.h"
#include "data/shards.h"
#include "kernels/device.h"
#include "runtime/worker.h"
#include "train/run_training.h"

using namespace flywheel;

namespace {

constexpr int kSkipped = 77;

void write_random_tokens(const std::string& folder, int64_t vocabulary, int64_t tokens) {
  auto writer = data::ShardWriter::create(folder, {.vocab_size = vocabulary}).value();
  Philox rng(1);
  std::vector<int32_t> document(4000);
  for (int64_t written = 0; written < tokens; written += std::ssize(document)) {
    for (int32_t& token : document)
      token = static_cast<int32_t>(rng.below(static_cast<uint32_t>(vocabulary)));
    writer.add(document).value();
  }
  (void)writer.seal().value();
}

train::TrainConfig config_of(const Json& job) {
  train::TrainConfig config;
  config.device = train::DeviceChoice::kGpu;
  config.steps = job.at("steps").get<int64_t>();
  config.model = {.hidden_size = job.at("hidden_size").get<int64_t>(),
                  .intermediate_size = job.at("intermediate_size").get<int64_t>(),
                  .num_layers = job.at("num_layers").get<int64_t>(),
                  .num_heads = job.at("num_heads").get<int64_t>(),
                  .num_kv_heads = job.at("num_kv_heads").get<int64_t>(),
                  .vocab_size = job.at("vocab_size").get<int64_t>(),
                  .max_positions = job.at("length").get<int64_t>()};
  config.optimizer.lr = 3e-4, config.optimizer.min_lr = 3e-5;
  config.batch = {.sequences = job.at("sequences").get<int64_t>(),
                  .length = job.at("length").get<int64_t>(),
                  .micro_sequences = job.at("micro_sequences").get<int64_t>()};
  config.snapshots.interval_s = 3600;  // not while this is measured
  config.heartbeat_timeout_s = 30;     // a model is brought to the GPU meanwhile
  return config;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "worker") return runtime::worker_main();
  if (kernels::device_count() == 0) return kSkipped;
  if (argc > 1 && std::string_view(argv[1]) == "--has-gpu") return 0;
  const auto job = parse_json(argc > 1 ? argv[1] : "");
  if (!job.ok()) {
    std::fprintf(stderr, "usage: %s JOB, as bench/train_gpu words it: %s\n", argv[0],
                 job.error().message.c_str());
    return 2;
  }
  init_logging("warn");
  const TempFolder folder;
  setenv("FLYWHEEL_HOME", (folder / "home").c_str(), 1);
  train::TrainConfig config = config_of(*job);
  write_random_tokens(folder / "tokens", config.model.vocab_size, 4'000'000);
  config.data.train = folder / "tokens";
  const auto report = train::run_training(config, {.fresh = true}, {});
  if (!report.ok()) {
    std::fprintf(stderr, "%s\n", report.error().to_string().c_str());
    return 1;
  }
  Json result = {{"tokens_per_second", report->tokens_per_second.value_or(0)},
                 {"limit_share", nullptr},
                 {"parameters", report->parameters},
                 {"steps", report->steps},
                 {"loss", report->loss}};
  if (report->limit_share) result["limit_share"] = *report->limit_share;
  std::printf("%s\n", result.dump().c_str());
}
