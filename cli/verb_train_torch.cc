// flywheel train: a model from token shards, on a mesh of workers, with a log that survives any of them.
#include <atomic>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <tuple>
#include <utility>

#include "base/config_places.h"
#include "base/file.h"
#include "base/json.h"
#include "base/live_lines.h"
#include "base/memory.h"
#include "base/progress.h"
#include "cli.h"
#include "deepspeed_flag.h"
#include "launch.h"
#include "train/live_view.h"
#include "train/plan_job.h"
#include "train/run_training.h"
#include "utf8.h"

namespace flywheel::cli {
namespace {

Json to_json(const train::TrainReport& r) {
  const auto or_null = [](const std::optional<double>& value) { return value ? Json(*value) : Json(); };
  Json json = {{"run", r.run},
               {"model", r.model},
               {"checkpoint", r.checkpoint},
               {"sha256", r.sha256},
               {"parameters", r.parameters},
               {"steps", r.steps},
               {"tokens", r.tokens},
               {"loss", r.loss},
               {"seconds", r.seconds},
               {"tokens_per_second", or_null(r.tokens_per_second)},
               {"limit_share", or_null(r.limit_share)},
               {"recoveries", r.recoveries},
               {"recovery_seconds", r.recovery_seconds},
               {"lost_seconds", r.lost_seconds},
               {"taken_up", r.taken_up},
               {"steps_done_again", r.steps_done_again},
               {"chart", r.chart}};
  if (r.validation_loss >= 0) json["validation_loss"] = r.validation_loss;
  json["guard_events"] = Json::array();
  for (const train::GuardEvent& event : r.guard_events) json["guard_events"].push_back(train::to_json(event));
  for (const train::MeshChange& change : r.mesh_changes)
    json["mesh_changes"].push_back(train::to_json(change));
  for (const train::DigestEvent& event : r.digest_events)
    json["digest_events"].push_back(train::to_json(event));
  if (!r.trace.empty()) json["trace"] = r.trace;
  return json;
}

void print_report(const train::TrainReport& r) {
  std::printf("%s\n", train::loss_chart(r).terminal(80, 16).c_str());
  std::printf("run         %s, %s parameters, %s steps, %s tokens in %s\n", r.run.c_str(),
              human_count(r.parameters).c_str(), human_count(r.steps).c_str(), human_count(r.tokens).c_str(),
              human_seconds(r.seconds).c_str());
  std::printf("loss        %.4f", r.loss);
  if (r.validation_loss >= 0) std::printf(", validation %.4f", r.validation_loss);
  std::printf("\nspeed       %s\n", speed_text(r).c_str());
  if (r.taken_up > 0) std::printf("taken up    %d times after its controller had ended\n", r.taken_up);
  if (r.recoveries > 0) {
    std::printf("recovered   %d times%s, in %s\n", r.recoveries, r.taken_up > 0 ? " since then" : "",
                human_seconds(r.lost_seconds).c_str());
  }
  if (r.steps_done_again > 0) std::printf("done again  %ld steps\n", static_cast<long>(r.steps_done_again));
  for (const train::GuardEvent& event : r.guard_events)
    std::printf("guard       %s\n", train::describe(event).c_str());
  for (const train::MeshChange& change : r.mesh_changes)
    std::printf("mesh        %s\n", train::describe(change).c_str());
  for (const train::DigestEvent& event : r.digest_events)
    std::printf("digests     %s\n", train::describe(event).c_str());
  if (!r.trace.empty()) std::printf("trace       %s\n", r.trace.c_str());
  std::printf("model       %s\ncheckpoint  %s\nsha256      %s\ncurve       %s\n", r.model.c_str(),
              r.checkpoint.c_str(), r.sha256.c_str(), r.chart.c_str());
}

// Of the file system where this folder is, or will be.
double free_bytes(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::path there = fs::absolute(folder, error);
  while (!fs::exists(there, error) && there.has_relative_path()) there = there.parent_path();
  const fs::space_info space = fs::space(there, error);
  return error ? 0 : static_cast<double>(space.available);
}

// Workers that do not fit into this host's memory, or whose files do not fit onto its disk, are refused
// before anything starts. A dataset or model that cannot be found is left to run_training(), which says what
// brings it; what other hosts have is not known.
void check_memory(const train::TrainConfig& config) {
  if (!config.mesh.hosts.empty() || config.device == train::DeviceChoice::kGpu) return;
  std::optional<std::string> refusal, no_room;
  try {
    const model::DecoderConfig decoder = train::decoder_to_plan(config, "");
    refusal = train::memory_refusal(config, decoder, available_memory_bytes());
    if (config.offload.in_files())
      no_room = train::disk_refusal(config, decoder, free_bytes(config.offload.path));
  } catch (const UserError&) {
    return;
  }
  if (refusal) throw UserError("flywheel train", *refusal);
  if (no_room) throw UserError("offload.path", *no_room);
}

// While it lives, the first SIGINT or SIGTERM is only noted; a second one ends the program.
class StopSignals {
 public:
  StopSignals() {
    noted_ = 0;
    Action action{};
    action.sa_handler = [](int signal) { noted_ = signal; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, &interrupt_before_);
    sigaction(SIGTERM, &action, &terminate_before_);
  }
  ~StopSignals() {
    sigaction(SIGINT, &interrupt_before_, nullptr);
    sigaction(SIGTERM, &terminate_before_, nullptr);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  static int noted() { return noted_; }  // 0: none

 private:
  using Action = struct sigaction;
  static inline std::atomic<int> noted_ = 0;
  Action interrupt_before_{}, terminate_before_{};
};

// DeepSpeed's csv_monitor: a file for each value, a row for each step, counted in samples.
void write_csv(const train::DeepSpeedConfig& ds, const train::Progress& p) {
  const auto row = [&](const char* name, double value) {
    const std::string path = ds.csv_folder + "/Train_Samples_" + name + ".csv";
    auto file = AppendFile::open(path).value_or_throw("csv_monitor");
    if (file.size_bytes() == 0) file.append(fmt::format("step,{}\n", name)).value_or_throw("csv_monitor");
    file.append(fmt::format("{},{}\n", p.step * ds.batch.train, value)).value_or_throw("csv_monitor");
  };
  row("train_loss", p.loss);
  row("lr", p.lr);
}

// "5-7" or "5". UserError for what is neither.
std::pair<int64_t, int64_t> parse_steps(const std::string& text) {
  const char* const end = text.data() + text.size();
  std::pair<int64_t, int64_t> steps;
  auto read = std::from_chars(text.data(), end, steps.first);
  steps.second = steps.first;
  if (read.ec == std::errc() && read.ptr != end && *read.ptr == '-')
    read = std::from_chars(read.ptr + 1, end, steps.second);
  if (read.ec != std::errc() || read.ptr != end)
    throw UserError("--trace-steps", "\"" + text + "\" is not A-B, as 5-7");
  return steps;
}

// --trace FILE --trace-steps A-B stand for keys of the config: a run that is resumed must trace what it
// traced.
void take_trace_flags(train::TrainConfig& config, ConfigPlaces& places, const std::string& file,
                      const std::string& steps) {
  train::TraceConfig& trace = config.trace;
  check_utf8("--trace", file);
  // As it is seen from here, wherever the run is gone on with.
  if (!file.empty()) trace.file = file, places.set("trace.file", "--trace");
  if (!trace.file.empty() && trace.file.find("://") == std::string::npos)
    trace.file = std::filesystem::absolute(trace.file).lexically_normal();
  if (steps.empty()) return;
  if (trace.file.empty()) throw UserError("--trace-steps", "says which steps --trace FILE has");
  std::tie(trace.first_step, trace.last_step) = parse_steps(steps);
  for (const char* key : {"trace.first_step", "trace.last_step"}) places.set(key, "--trace-steps");
}

int verb_train(const std::vector<std::string>& args) {
  App app{
      "Train a model on a mesh of workers.\n\n"
      "Ctrl-C or SIGTERM stops a run so that it can be resumed; the same command again goes on with it.\n"
      "Of --json's line, seconds, tokens_per_second, limit_share, recoveries, recovery_seconds and\n"
      "lost_seconds are of this start; all else is of the whole run, so is taken_up, how often it was gone\n"
      "on with, and steps_done_again."};
  std::string file, resume;
  std::vector<std::string> overrides;
  bool json = false, fresh = false;
  app.add_option("config", file, "YAML file; every key and its default: flywheel train --show-config");
  app.add_option("--set", overrides, "key=value, over the file's: --set mesh.data=4 --set optimizer.lr=3e-4")
      ->allow_extra_args(false);
  app.add_option("--resume", resume, "Go on where this run was (flywheel runs list shows them)");
  app.add_flag("--new", fresh, "Begin a new run even if one with this very config was left unfinished");
  app.add_flag("--json", json, "End with one JSON line");
  std::string deepspeed_file;
  app.add_option(
      "--deepspeed", deepspeed_file,
      "A DeepSpeed configuration as it is; model, data and workers come from the config file and --set");
  LaunchFlags flags;
  add_launch_flags(app, flags);
  std::string trace_file, trace_steps;
  app.add_option(
      "--trace", trace_file,
      "Write what each worker computed and exchanged in some steps to this file, in Chrome's trace "
      "format (ui.perfetto.dev)");
  app.add_option("--trace-steps", trace_steps, "A-B: these steps, counted from 1; default: 3-5");
  bool show = false;
  app.add_flag("--show-config", show, "Print the resolved config and stop");
  app.footer(
      "  flywheel train examples/tiny.yaml                      2 workers on this machine\n"
      "  flywheel train examples/tiny.yaml --set mesh.data=4 --set optimizer.lr=3e-4\n"
      "  flywheel train examples/tiny.yaml --set mesh.zero=2     workers share state and gradients\n"
      "  flywheel train examples/tiny.yaml --set guard.on_nan=skip --set guard.on_spike=rewind\n"
      "  flywheel train --resume tiny-1                         go on where run tiny-1 was\n"
      "  flywheel train examples/tiny.yaml --trace trace.json --trace-steps 5-7\n"
      "  flywheel train examples/tiny.yaml --show-config        every key, as it would be used\n"
      "  flywheel train examples/tiny.yaml --deepspeed ds_config.json\n"
      "  flywheel train examples/tiny.yaml --on ssh --hosts node7,node8\n"
      "  flywheel train examples/tiny.yaml --on slurm --launch-options='--nodes=2 --time=60'\n"
      "  mpirun -n 2 flywheel train examples/tiny.yaml --on mpi\n"
      "  flywheel train examples/tiny.yaml --on k8s --write job.yaml --image IMAGE --claim CLAIM\n"
      "  flywheel train examples/tiny.yaml --on ray --dashboard http://10.0.0.1:8265\n");
  if (auto exit = parse(app, "train", args)) return *exit;
  if (file.empty() && resume.empty() && !show) {
    throw UserError("flywheel train", "give a config file or --resume RUN",
                    "flywheel train --help shows examples");
  }
  if (!file.empty() && !resume.empty()) {
    throw UserError("--resume", "goes on with the run's own config", "leave the file away");
  }
  train::TrainConfig config;
  ConfigPlaces places;
  if (!resume.empty()) {
    if (!overrides.empty()) throw UserError("--set", "a run goes on with its own config");
    config = train::config_of_run(resume).value_or_throw("--resume");
  } else {
    for (const std::string& set : overrides) check_utf8("--set", set);
    config = places.load<train::TrainConfig>(file, overrides);
  }
  train::DeepSpeedConfig deepspeed;
  if (!deepspeed_file.empty()) {
    if (!resume.empty()) throw UserError("--deepspeed", "a run goes on with its own config");
    deepspeed = over_deepspeed(deepspeed_file, config);
    config = deepspeed.train;
    places = {};  // of numbers that may now be the other file's
  }
  if (!resume.empty() && !(trace_file + trace_steps).empty())
    throw UserError("--trace", "a run goes on with its own config");
  take_trace_flags(config, places, trace_file, trace_steps);
  if (show) {
    std::printf("%s\n", dump_config(config).c_str());
    return 0;
  }
  places.blame([&] { train::check(config); });  // before anything is asked to start processes for it
  std::vector<std::string> beside_config;
  if (!resume.empty()) beside_config.emplace_back("--resume");
  if (fresh) beside_config.emplace_back("--new");
  if (json) beside_config.emplace_back("--json");
  if (!deepspeed.csv_folder.empty()) beside_config.push_back(deepspeed_file + ": csv_monitor");
  const StopSignals signals;  // from here on: a job that is waited for must not be left behind
  const Launched launched = launch(flags, {.verb = "train",
                                           .args = args,
                                           .name = config.name,
                                           .workers = static_cast<int>(config.mesh.workers()),
                                           .threads = config.mesh.threads,
                                           .address = config.mesh.address,
                                           .port = static_cast<int>(config.mesh.port),
                                           .names_hosts = !config.mesh.hosts.empty(),
                                           .config = dump_config(config),
                                           .beside_config = beside_config,
                                           .stop_signal = StopSignals::noted});
  if (launched.exit_code) return *launched.exit_code;
  if (!launched.cluster) check_memory(config);
  if (!deepspeed.csv_folder.empty()) make_folders(deepspeed.csv_folder).value_or_throw("csv_monitor");
  std::unique_ptr<ProgressBar> bar;
  train::TrainHooks hooks;
  hooks.on_start = [&](const std::string& run, int64_t parameters, bool resumed) {
    std::fprintf(stderr, "%s %s: %s parameters, %ld workers\n", resumed ? "going on with run" : "run",
                 run.c_str(), human_count(parameters).c_str(), static_cast<long>(config.mesh.workers()));
    bar = std::make_unique<ProgressBar>("train", config.steps, "steps");
  };
  train::LiveView view;
  hooks.on_evaluate = [&](int64_t step, double loss) { view.evaluation(step, loss); };
  hooks.on_event = [&](int64_t step, const std::string& what) { view.event(step, what); };
  int recoveries = 0;
  int64_t data_ranks = config.mesh.data;
  hooks.on_step = [&](const train::Progress& p) {
    if (p.data_ranks != data_ranks) {
      const std::string text =
          fmt::format("the run goes on with {} of {} data ranks", p.data_ranks, config.mesh.data);
      view.event(p.step, text);
      const LiveLines::Aside aside;
      std::fprintf(stderr, "%s\n", text.c_str());
      data_ranks = p.data_ranks;
    }
    if (p.recoveries > recoveries) {
      recoveries = p.recoveries;
      const LiveLines::Aside aside;
      std::fprintf(stderr, "a worker was lost; the run recovered by replay in %s\n",
                   human_seconds(p.lost_seconds).c_str());
    }
    if (!deepspeed.csv_folder.empty()) write_csv(deepspeed, p);
    if (deepspeed.steps_per_print > 0 && p.step % deepspeed.steps_per_print == 0) {
      const LiveLines::Aside aside;
      std::fprintf(stderr, "step=%ld, loss=%.6f, lr=%g\n", static_cast<long>(p.step), p.loss, p.lr);
    }
    view.step(p);
    bar->update(p.step, p.text(), [&](int columns, int rows) { return view.lines(columns, rows); });
  };
  hooks.should_stop = [] { return StopSignals::noted() != 0; };
  const auto report = places.blame([&] {
    return train::run_training(config, {.resume = resume, .fresh = fresh, .cluster = launched.cluster},
                               hooks);
  });
  if (!report.ok()) {
    bar.reset();
    if (report.error().code == ErrorCode::kCancelled && StopSignals::noted() != 0) {
      std::fprintf(stderr, "%s\n", report.error().message.c_str());
      return launched.end(128 + StopSignals::noted());
    }
    std::fprintf(stderr, "flywheel train: %s\n", report.error().to_string().c_str());
    return launched.end(1);
  }
  if (bar != nullptr) bar->finish(fmt::format("loss {:.3f}", report->loss));
  if (json) {
    std::printf("%s\n", to_json(*report).dump().c_str());
  } else {
    print_report(*report);
  }
  return launched.end(0);
}

REGISTER_VERB(train, "Train a model on a mesh of workers", verb_train);

}  // namespace
}  // namespace flywheel::cli
