#include "train/run_training.h"

#include <cmath>
#include <deque>
#include <filesystem>

#include "base/cpu.h"
#include "base/env.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/plot.h"
#include "kernels/peak.h"
#include "runtime/controller.h"
#include "store/store.h"
#include "train/operations.h"

namespace flywheel::train {
namespace {

using runtime::Controller;
using runtime::Future;
using runtime::Mesh;
using store::Artifact;
using store::Run;
using store::RunStatus;
using store::Store;

constexpr int64_t kStepsInFlight = 2;  // commands ahead of the workers, so that they never wait for us
constexpr const char* kDatasetHint =
    "`flywheel data prepare` makes a dataset of your files, `flywheel demo --only data` makes debian-docs";
constexpr double kRateSeconds = 10;  // tokens a second are counted over the last so many

// A dataset or tokenizer as a local folder, and what the lineage calls it.
struct Input {
  std::string folder, ref;
};

// `name`: a folder, or an artifact in the store. What is found must hold one of `markers`.
// `hint`: what brings one that is not there.
Result<Input> find_input(Store& store, const std::string& key, const std::string& name,
                         const std::vector<std::string>& markers, const std::string& hint = "") {
  if (name.empty()) return Input{};
  const auto marker_in = [&](const std::string& folder) {
    for (const std::string& marker : markers) {
      if (path_exists(folder + "/" + marker)) return folder + "/" + marker;
    }
    return std::string();
  };
  if (const std::string mark = marker_in(name); !mark.empty()) {
    ASSIGN_OR_RETURN(const std::string digest, sha256_file(mark));
    const std::string folder = std::filesystem::absolute(name).lexically_normal().string();
    ASSIGN_OR_RETURN(const uint64_t size, file_size(mark));
    ASSIGN_OR_RETURN(const Artifact source,
                     store.put_source(std::filesystem::path(folder).filename().string() + "-folder", folder,
                                      digest, size));
    return Input{folder, source.ref()};
  }
  const Result<Artifact> found = store.resolve(name);
  if (!found.ok() && found.error().code == ErrorCode::kNotFound)
    throw UserError(key, found.error().message, hint);
  ASSIGN_OR_RETURN(const Artifact artifact, found);
  ASSIGN_OR_RETURN(const std::string folder, store.path_of(artifact));
  if (marker_in(folder).empty()) throw UserError(key, artifact.ref() + " has no " + markers.front());
  return Input{folder, artifact.ref()};
}

// Token shards lie in the folder itself or, in a dataset that `flywheel data` made, below it by split.
std::string split_of(const std::string& folder, const std::string& split) {
  const std::string below = folder + "/shards/" + split;
  return path_exists(below + "/manifest.json") ? below : folder;
}

// The tokenizer that a dataset was made with, from its lineage; "" where there is none.
std::string tokenizer_above(const store::LineageNode& node) {
  if (node.what == store::LineageNode::What::kArtifact && node.kind == "tokenizer") return node.id;
  for (const store::LineageNode& child : node.children) {
    if (std::string found = tokenizer_above(child); !found.empty()) return found;
  }
  return "";
}

// One run's way from config to report; the functions are its stages, in order.
class Program {
 public:
  Program(const TrainConfig& config, const TrainOptions& options, const TrainHooks& hooks, Store store)
      : config_(config), options_(options), hooks_(hooks), store_(std::move(store)) {}

  Result<TrainReport> run() {
    RETURN_IF_ERROR(find_inputs());
    RETURN_IF_ERROR(open_run());
    Result<void> done = drive();
    if (!done.ok()) {
      (void)run_->finish(RunStatus::kFailed, done.error().message);
      return done.error();
    }
    RETURN_IF_ERROR(run_->finish(RunStatus::kFinished));
    return report_;
  }

 private:
  Result<void> find_inputs() {
    const std::vector<std::string> shards_markers = {"manifest.json", "shards/train/manifest.json"};
    ASSIGN_OR_RETURN(data_,
                     find_input(store_, "data.train", config_.data.train, shards_markers, kDatasetHint));
    const std::string dataset = data_.folder;
    data_.folder = split_of(dataset, "train");
    if (config_.data.validation.empty() && split_of(dataset, "validation") != dataset) {
      ASSIGN_OR_RETURN(const data::TokenShards own, data::TokenShards::open(split_of(dataset, "validation")));
      if (own.num_samples(config_.batch.length) > 0) {
        validation_ = {split_of(dataset, "validation"), ""};  // comes with the dataset
      } else {
        LOG_WARN("the validation split of {} is shorter than one sequence: this run does not evaluate",
                 data_.ref);
      }
    } else {
      ASSIGN_OR_RETURN(validation_, find_input(store_, "data.validation", config_.data.validation,
                                               shards_markers, kDatasetHint));
      validation_.folder = split_of(validation_.folder, "validation");
    }
    std::string tokenizer = config_.data.tokenizer;
    if (tokenizer.empty() && path_exists(dataset + "/tokenizer/tokenizer.json"))
      tokenizer = dataset + "/tokenizer";
    if (tokenizer.empty()) {
      ASSIGN_OR_RETURN(const store::LineageNode made_from, store_.lineage(data_.ref));
      tokenizer = tokenizer_above(made_from);
    }
    ASSIGN_OR_RETURN(tokenizer_, find_input(store_, "data.tokenizer", tokenizer, {"tokenizer.json"}));
    ASSIGN_OR_RETURN(const data::TokenShards shards, data::TokenShards::open(data_.folder));
    if (config_.model.from.empty()) {
      decoder_config_ = decoder_config(config_.model, shards.manifest().vocab_size);
    } else {
      ASSIGN_OR_RETURN(from_, find_input(store_, "model.from", config_.model.from, {"config.json"}));
      ASSIGN_OR_RETURN(const auto source, model::open_weights(from_.folder));
      ASSIGN_OR_RETURN(const Json json, source->config());
      ASSIGN_OR_RETURN(decoder_config_, model::decoder_config_from_hf(json));
    }
    if (config_.batch.length > decoder_config_.max_positions) {
      throw UserError("batch.length", fmt::format("{} is more than the model's {} positions",
                                                  config_.batch.length, decoder_config_.max_positions));
    }
    return {};
  }

  // A run that was left unfinished with this very config is taken up again.
  Result<void> open_run() {
    const std::string text = dump_config(config_);
    std::string id = options_.resume;
    if (id.empty() && !options_.fresh) {
      ASSIGN_OR_RETURN(const std::vector<store::RunInfo> known,
                       store_.list_runs({.name = config_.name, .kind = "train"}));
      for (const store::RunInfo& info : known) {
        const bool over = info.status == RunStatus::kFinished || info.status == RunStatus::kRunning;
        if (!over && info.config == text) {
          id = info.id;
          break;
        }
      }
    }
    if (id.empty()) {
      ASSIGN_OR_RETURN(Run run, store_.create_run({.name = config_.name, .kind = "train", .config = text}));
      run_ = std::move(run);
    } else {
      ASSIGN_OR_RETURN(const store::RunInfo info, store_.run_info(id));
      if (info.status == RunStatus::kFinished) {
        throw UserError("--resume", id + " is finished", "flywheel runs show " + id + " tells what it made");
      }
      ASSIGN_OR_RETURN(Run run, store_.resume_run(id));
      run_ = std::move(run);
    }
    for (const Input& input : {data_, validation_, tokenizer_, from_}) {
      if (!input.ref.empty()) RETURN_IF_ERROR(run_->add_input(input.ref));
    }
    report_.run = run_->id();
    report_.folder = env::home() + "/runs/" + run_->id();
    return {};
  }

  Result<void> drive() {
    const int64_t cores = usable_cores();
    const model::Decoder decoder = model::describe(decoder_config_);
    const auto dtype = config_.precision == Precision::kBF16 ? kernels::DType::kBF16 : kernels::DType::kF32;
    report_.parameters = decoder.num_parameters();
    report_.steps = config_.steps;
    flop_per_token_ = flop_per_token(decoder, config_.batch.length);
    {
      ThreadPool pool(static_cast<int>(cores));
      peak_flops_ = kernels::peak_flops(dtype, pool);
    }

    // A snapshot copies weights and moments; larger models make them less often and replay a little more.
    const int64_t state_bytes = report_.parameters * 12;
    runtime::ControllerOptions controller_options{
        .folder = report_.folder, .run = run_->id(), .seed = config_.seed};
    controller_options.watermark_interval_ms = 1000 + state_bytes / 20'000;
    controller_options.durable_interval_ms =
        std::max<int64_t>(30'000, 4 * controller_options.watermark_interval_ms);
    controller_options.launcher = runtime::make_local_launcher(
        {.command = options_.worker_command, .log_folder = report_.folder + "/workers"});
    ASSIGN_OR_RETURN(auto controller, Controller::open(std::move(controller_options)));
    ASSIGN_OR_RETURN(mesh_, controller->mesh("train", {{"data", static_cast<int>(config_.mesh.data)}}));
    ASSIGN_OR_RETURN(first_rank_, mesh_.slice({{"data", 0}}));
    if (hooks_.on_start) hooks_.on_start(run_->id(), report_.parameters, controller->resumed());

    ASSIGN_OR_RETURN(const Start start, find_start(controller->resumed()));
    const TrainSetup setup{.config = dump_config(config_),
                           .decoder = model::decoder_config_to_hf(decoder_config_, "float32").dump(),
                           .data = data_.folder,
                           .validation = validation_.folder,
                           .tokenizer = tokenizer_.folder,
                           .weights = from_.folder,
                           .state = start.state,
                           .threads = config_.mesh.threads > 0
                                          ? config_.mesh.threads
                                          : std::max<int64_t>(1, cores / config_.mesh.data)};
    const Future created = mesh_.call(kCreate, setup.to_json());
    RETURN_IF_ERROR(created.wait());
    RETURN_IF_ERROR(steps(start.step));
    RETURN_IF_ERROR(finish());
    return controller->close();
  }

  // Where the run begins: at step 0, or, when it is resumed and its log is gone, at its last checkpoint.
  // Written down once, so that whoever takes this run up again makes the same calls.
  struct Start {
    std::string state;
    int64_t step = 0;
  };
  Result<Start> find_start(bool log_is_there) {
    const std::string path = report_.folder + "/start.json";
    if (log_is_there && path_exists(path)) {
      ASSIGN_OR_RETURN(const std::string text, read_file(path));
      ASSIGN_OR_RETURN(const Json json, parse_json(text));
      return Start{json.value("state", std::string()), json.value("step", int64_t{0})};
    }
    Start start;
    const std::string checkpoints = report_.folder + "/checkpoints";
    std::vector<std::string> names;
    if (path_exists(checkpoints)) {
      ASSIGN_OR_RETURN(names, list_folder(checkpoints));
    }
    for (const std::string& name : names) {  // ascending, so the newest complete one stays
      const auto info = read_checkpoint_info(checkpoints + "/" + name);
      if (info.ok() && info->step < config_.steps)
        start = {checkpoints + "/" + name + "/trainer.state", info->step};
    }
    if (start.step > 0) LOG_INFO("run {} goes on from its checkpoint of step {}", run_->id(), start.step);
    RETURN_IF_ERROR(write_file(path, Json{{"state", start.state}, {"step", start.step}}.dump()));
    return start;
  }

  Result<void> steps(int64_t first) {
    first_step_ = first;
    const Stopwatch clock;
    std::deque<Future> in_flight;
    const auto take = [&]() -> Result<void> {
      const Future future = in_flight.front();
      in_flight.pop_front();
      ASSIGN_OR_RETURN(const std::string text, future.get(0));
      ASSIGN_OR_RETURN(const StepResult result, step_result_from_json(text));
      note_step(result, future.replayed(), clock.seconds());
      return {};
    };
    for (int64_t step = first; step < config_.steps; ++step) {
      in_flight.push_back(mesh_.call(kStep, "", {.want_value = true, .cursor = step}));
      while (std::ssize(in_flight) > kStepsInFlight) RETURN_IF_ERROR(take());
      const int64_t done = step + 1;
      const bool last = done == config_.steps;
      const bool evaluates =
          !validation_.folder.empty() &&
          (last || (config_.evaluate.every_steps > 0 && done % config_.evaluate.every_steps == 0));
      const bool saves =
          !last && config_.checkpoint.every_steps > 0 && done % config_.checkpoint.every_steps == 0;
      if (!last && !evaluates && !saves) continue;
      while (!in_flight.empty()) RETURN_IF_ERROR(take());
      if (evaluates) RETURN_IF_ERROR(evaluate(done));
      if (saves) RETURN_IF_ERROR(save(done));
    }
    report_.seconds = clock.seconds();
    report_.tokens_per_second = computed_tokens_ / std::max(1e-9, computed_seconds_);
    report_.limit_share = report_.tokens_per_second * flop_per_token_ / peak_flops_;
    return {};
  }

  void note_step(const StepResult& result, bool replayed, double now) {
    const int64_t done = first_step_ + std::ssize(report_.losses) + 1;
    report_.losses.push_back(result.loss);
    report_.loss = result.loss;
    report_.tokens += result.tokens;
    if (!replayed) {  // what the log answered took no time and says nothing about speed
      computed_tokens_ += recent_.empty() ? 0 : static_cast<double>(result.tokens);
      computed_seconds_ += recent_.empty() ? 0 : now - recent_.back().first;
      recent_.emplace_back(now, static_cast<double>(result.tokens));
      while (recent_.size() > 2 && now - recent_.front().first > kRateSeconds) recent_.pop_front();
    }
    double tokens = 0;
    for (size_t i = 1; i < recent_.size(); ++i) tokens += recent_[i].second;
    const double rate = recent_.size() < 2 ? 0 : tokens / (now - recent_.front().first);
    run_->log_metrics(done, {{"loss", result.loss},
                             {"lr", result.lr},
                             {"gradient_norm", result.gradient_norm},
                             {"tokens_per_second", rate}});
    const runtime::MeshStatus status = mesh_.status();
    report_.recoveries = status.recoveries;
    report_.recovery_seconds = status.last_recovery_seconds;
    if (!hooks_.on_step) return;
    hooks_.on_step({.step = done,
                    .steps = config_.steps,
                    .loss = result.loss,
                    .gradient_norm = result.gradient_norm,
                    .lr = result.lr,
                    .tokens_per_second = rate,
                    .limit_share = rate * flop_per_token_ / peak_flops_,
                    .recoveries = status.recoveries,
                    .recovery_seconds = status.last_recovery_seconds,
                    .worker_pids = status.pids});
  }

  Result<void> evaluate(int64_t done) {
    const Future future =
        mesh_.call(kEvaluate, "", {.want_value = true, .cursor = config_.evaluate.sequences});
    ASSIGN_OR_RETURN(const std::string text, future.get(0));
    ASSIGN_OR_RETURN(const Json json, parse_json(text));
    report_.validation_loss = json.value("loss", 0.0);
    report_.evaluation_steps.push_back(done);
    report_.evaluation_losses.push_back(report_.validation_loss);
    run_->log_metric("validation_loss", done, report_.validation_loss);
    if (hooks_.on_evaluate) hooks_.on_evaluate(done, report_.validation_loss);
    recent_.clear();
    return {};
  }

  // Starts to write a checkpoint; the one before is finished and recorded first. Training goes on meanwhile.
  Result<void> save(int64_t done) {
    RETURN_IF_ERROR(record_checkpoint());
    saving_ = fmt::format("{}/checkpoints/step-{:08}", report_.folder, done);
    saving_step_ = done;
    const std::string args = Json{{"folder", saving_}, {"loss", report_.loss}}.dump();
    return first_rank_.call(kSave, args).wait();
  }

  Result<void> record_checkpoint() {
    if (saving_.empty()) return {};
    const Future future = first_rank_.call(kSaved, saving_, {.want_value = true});
    ASSIGN_OR_RETURN(const std::string text, future.get(0));
    ASSIGN_OR_RETURN(const Json info, parse_json(text));
    ASSIGN_OR_RETURN(const Artifact artifact,
                     put("checkpoint", config_.name + "-checkpoint", saving_, saving_step_, info));
    report_.checkpoint = artifact.ref();
    saving_.clear();
    return {};
  }

  Result<Artifact> put(const std::string& kind, const std::string& name, const std::string& path,
                       int64_t step, const Json& metadata) {
    std::vector<std::string> inputs;
    for (const Input& input : {data_, validation_, tokenizer_, from_}) {
      if (!input.ref.empty()) inputs.push_back(input.ref);
    }
    return store_.put_artifact({.kind = kind,
                                .name = name,
                                .path = path,
                                .inputs = std::move(inputs),
                                .run = run_->id(),
                                .metadata = metadata,
                                .once = fmt::format("{}/{}/{}", run_->id(), kind, step)});
  }

  Result<void> finish() {
    RETURN_IF_ERROR(save(config_.steps));
    const std::string folder = saving_;
    RETURN_IF_ERROR(record_checkpoint());
    const Future digest = mesh_.call(kDigest, "", {.want_value = true});
    for (int rank = 0; rank < config_.mesh.data; ++rank) {
      ASSIGN_OR_RETURN(const std::string sha256, digest.get(rank));
      if (rank > 0 && sha256 != report_.sha256) {
        return make_error(ErrorCode::kCorrupt,
                          "worker {} has other weights than worker 0 after the last step", rank);
      }
      report_.sha256 = sha256;
    }
    Json metadata = {{"loss", report_.loss},
                     {"parameters", report_.parameters},
                     {"steps", config_.steps},
                     {"tokens", report_.tokens},
                     {"sha256", report_.sha256}};
    if (report_.validation_loss >= 0) metadata["validation_loss"] = report_.validation_loss;
    ASSIGN_OR_RETURN(const Artifact model,
                     put("model", config_.name, folder + "/model", config_.steps, metadata));
    report_.model = model.ref();

    report_.chart = report_.folder + "/loss.svg";
    return write_file(report_.chart, loss_chart(report_).svg());
  }

  TrainConfig config_;
  TrainOptions options_;
  TrainHooks hooks_;
  Store store_;
  std::optional<Run> run_;
  Input data_, validation_, tokenizer_, from_;
  model::DecoderConfig decoder_config_;
  Mesh mesh_, first_rank_;
  TrainReport report_;
  double flop_per_token_ = 0, peak_flops_ = 1;
  double computed_tokens_ = 0, computed_seconds_ = 0;
  std::deque<std::pair<double, double>> recent_;  // when a step ended, its tokens
  std::string saving_;                            // folder of the checkpoint under way
  int64_t saving_step_ = 0, first_step_ = 0;
};

}  // namespace

Result<TrainReport> run_training(const TrainConfig& config, const TrainOptions& options,
                                 const TrainHooks& hooks) {
  check(config);
  ASSIGN_OR_RETURN(Store store, Store::open());
  return Program(config, options, hooks, std::move(store)).run();
}

Chart loss_chart(const TrainReport& report) {
  Chart chart{.title = "loss of " + report.run, .x_label = "step", .y_label = "nats per token"};
  Series train{.name = "train"}, validation{.name = "validation"};
  for (size_t i = 0; i < report.losses.size(); ++i) {
    train.x.push_back(
        static_cast<double>(report.steps - std::ssize(report.losses) + static_cast<int64_t>(i) + 1));
    train.y.push_back(report.losses[i]);
  }
  for (size_t i = 0; i < report.evaluation_steps.size(); ++i) {
    validation.x.push_back(static_cast<double>(report.evaluation_steps[i]));
    validation.y.push_back(report.evaluation_losses[i]);
  }
  chart.series.push_back(std::move(train));
  if (!validation.x.empty()) chart.series.push_back(std::move(validation));
  return chart;
}

Result<TrainConfig> config_of_run(const std::string& run) {
  ASSIGN_OR_RETURN(Store store, Store::open());
  ASSIGN_OR_RETURN(const store::RunInfo info, store.run_info(run));
  if (info.kind != "train") {
    return make_error(ErrorCode::kInvalid, "{} is a run of kind {}, not a training run", run, info.kind);
  }
  return parse_config<TrainConfig>(run, info.config);
}

}  // namespace flywheel::train
