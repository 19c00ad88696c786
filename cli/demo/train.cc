// Part 2: a small Llama on two workers, one of which is killed half way; and its undisturbed twin.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <memory>

#include "base/env.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "demo/demo.h"
#include "train/model_cost.h"
#include "train/peak_record.h"

namespace flywheel::cli::demo {
namespace {

// Steps that take about 80 seconds here, so that both runs and the rest are over in minutes on processors
// without AVX-512 too. From what the machine was seen to multiply at most, of which training gets a quarter
// or more.
int64_t affordable_steps(const train::TrainConfig& config) {
  constexpr double kSeconds = 80, kShare = 0.25;
  const model::Decoder decoder = model::describe(train::decoder_config(config.model, kVocabulary));
  const double flop_per_token = train::model_cost(decoder, config.batch.length).flop_per_token();
  const auto tokens = static_cast<double>(config.batch.sequences * config.batch.length);
  const double peak =
      train::recorded_peak_flops(env::home() + "/peaks.json", kernels::DType::kBF16, compute_pool());
  return std::clamp(static_cast<int64_t>(kSeconds * kShare * peak / (flop_per_token * tokens)), int64_t{80},
                    int64_t{320});
}

train::TrainConfig config_of(Context& context) {
  train::TrainConfig config;
  config.name = kModel;
  config.model.hidden_size = 256;
  config.model.num_layers = 6;
  config.model.num_heads = 8;
  config.model.num_kv_heads = 4;
  config.data.train = kDataset;
  config.batch.sequences = 8;
  config.batch.length = 256;
  config.optimizer.lr = 1e-3;
  config.mesh.data = 2;
  // Not for a machine that lasts for years: who watches should see seconds done again, not the minute of the
  // formula.
  config.snapshots.interval_s = 3;
  if (context.steps == 0) context.steps = affordable_steps(config);  // once: both runs do the same
  config.steps = context.steps;
  return config;
}

// Trains; with `kill`, one worker gets SIGKILL when half of the steps are done.
train::TrainReport train_once(Context& context, bool kill) {
  const train::TrainConfig config = config_of(context);
  std::unique_ptr<ProgressBar> bar;
  bool killed = false;
  int recoveries = 0;
  train::TrainHooks hooks;
  hooks.on_start = [&](const std::string& run, int64_t parameters, bool) {
    say("run",
        fmt::format("{}: {} parameters on {} workers", run, human_count(parameters), config.mesh.data));
    bar = std::make_unique<ProgressBar>("train", config.steps, "steps");
  };
  hooks.on_step = [&](const train::Progress& p) {
    bar->update(p.step, p.text());
    if (kill && !killed && p.step * 2 >= config.steps && p.worker_pids.size() > 1) {
      killed = true;
      const auto victim = static_cast<pid_t>(p.worker_pids[1]);
      ::kill(victim, SIGKILL);
      std::fprintf(stderr, "\n");
      say("kill -9", fmt::format("worker 1 (process {}) at step {}, now", victim, p.step));
    }
    if (p.recoveries > recoveries) {
      recoveries = p.recoveries;
      std::fprintf(stderr, "\n");
      say("recovered",
          fmt::format("replay of the log began {} after the loss was noticed, and had caught up after {}",
                      human_seconds(p.recovery_seconds), human_seconds(p.lost_seconds)));
    }
  };
  // Each demo is a new run: an unfinished one of an earlier demo is not gone on with.
  train::TrainReport report = train::run_training(config, {.fresh = true}, hooks).value_or_throw("train");
  bar->finish(fmt::format("loss {:.3f}", report.loss));
  if (kill && report.recoveries == 0) {
    throw UserError("demo", "the worker that was killed was not missed: the run ended before it was noticed",
                    "train for longer with --steps", ErrorCode::kUnavailable);
  }
  say("trained", fmt::format("{} tokens at {}", human_count(report.tokens), speed_text(report)));
  say("sha256", report.sha256 + "  of weights and optimizer state");
  return report;
}

OrderedJson figures_of(const train::TrainReport& report) {
  OrderedJson out = {{"run", report.run},
                     {"model", report.model},
                     {"parameters", report.parameters},
                     {"steps", report.steps},
                     {"tokens", report.tokens},
                     {"loss", report.loss},
                     {"seconds", report.seconds},
                     {"tokens_per_second", report.tokens_per_second.value_or(0)},  // a new run: it is there
                     {"limit_share", report.limit_share.value_or(0)},
                     {"recoveries", report.recoveries},
                     {"recovery_seconds", report.recovery_seconds},
                     {"lost_seconds", report.lost_seconds},
                     {"sha256", report.sha256},
                     {"chart", report.chart}};
  if (report.validation_loss >= 0) out["validation_loss"] = report.validation_loss;
  return out;
}

}  // namespace

void run_train(Context& context) {
  if (!has(context, kDataset)) run_data(context);
  heading("train: two workers, one of them killed half way");
  context.killed = train_once(context, true);
  context.figures["train"] = figures_of(*context.killed);
}

bool run_twin(Context& context) {
  if (!context.killed) run_train(context);
  heading("the same steps, undisturbed");
  context.undisturbed = train_once(context, false);
  const bool same = context.killed->sha256 == context.undisturbed->sha256;
  say("so", same ? "the kill changed no bit" : "THE BITS DIFFER: the kill changed the result");
  context.figures["kill"] = {{"identical", same},
                             {"killed_sha256", context.killed->sha256},
                             {"undisturbed_sha256", context.undisturbed->sha256},
                             {"killed_seconds", context.killed->seconds},
                             {"undisturbed_seconds", context.undisturbed->seconds},
                             {"recovery_seconds", context.killed->recovery_seconds},
                             {"lost_seconds", context.killed->lost_seconds}};
  return same;
}

}  // namespace flywheel::cli::demo
