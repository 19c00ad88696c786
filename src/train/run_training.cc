#include "train/run_training.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <utility>

#include "base/cpu.h"
#include "base/env.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "kernels/device.h"
#include "model/decoder.h"
#include "runtime/collectives.h"
#include "train/can_train.h"
#include "train/checkpoint_saver.h"
#include "train/device_config.h"
#include "train/device_of_process.h"
#include "train/elastic_mesh.h"
#include "train/hosts.h"
#include "train/inputs.h"
#include "train/machine.h"
#include "train/metrics.h"
#include "train/model_cost.h"
#include "train/operations.h"
#include "train/peak_record.h"
#include "train/rounding.h"
#include "train/run_notes.h"
#include "train/run_record.h"
#include "train/run_start.h"
#include "train/trace_writer.h"
#include "train/workers.h"

namespace flywheel::train {
namespace {

using runtime::Future;
using store::Artifact;
using store::RunStatus;
using store::Store;

constexpr int64_t kStepsInFlight = 2;  // commands ahead of the workers, so that they never wait for us

// All hosts together; the others are taken to be like this one.
Machine machine_of(const model::Decoder& decoder, const TrainConfig& config, int64_t machines) {
  if (config.device == DeviceChoice::kGpu) {
    const auto known = machine_of_gpu(gpu_of_this_host());
    const double flops = known ? known->bf16_tflops * 1e12 : 0;
    return {.flop_per_token = model_cost(decoder, config.batch.length).flop_per_token(),
            .peak_flops = flops * static_cast<double>(config.mesh.workers())};
  }
  ThreadPool pool(static_cast<int>(usable_cores()));
  return {
      .flop_per_token = model_cost(decoder, config.batch.length).flop_per_token(),
      .peak_flops = recorded_peak_flops(env::home() + "/peaks.json", compute_dtype(config.precision), pool) *
                    static_cast<double>(machines)};
}

// One run's way from its inputs to its report; the functions are its stages, in order.
class Program {
 public:
  Program(const TrainConfig& config, const TrainOptions& options, const TrainHooks& hooks,
          runtime::Cluster cluster, Inputs inputs, RunRecord record)
      : config_(config),
        options_(options),
        hooks_(hooks),
        cluster_(std::move(cluster)),
        inputs_(std::move(inputs)),
        record_(std::move(record)),
        decoder_(decoder_of(config_, inputs_.decoder)),
        metrics_(record_.run().id()),
        notes_(config_, hooks_, record_, metrics_, report_,
               machine_of(decoder_, config_, count_machines(cluster_))) {
    report_.run = record_.run().id();
    report_.folder = record_.folder();
    report_.parameters = decoder_.num_trained();
    report_.steps = config_.steps;
    report_.on_gpus = config_.device == DeviceChoice::kGpu;
  }

  Result<TrainReport> run() {
    try {
      if (Result<void> done = drive(); !done.ok()) {
        const bool stopped = done.error().code == ErrorCode::kCancelled;
        (void)record_.run().finish(stopped ? RunStatus::kStopped : RunStatus::kFailed, done.error().message);
        return done.error();
      }
    } catch (const UserError& error) {
      (void)record_.run().finish(RunStatus::kFailed, error.what());
      throw;
    }
    RETURN_IF_ERROR(record_.run().finish(RunStatus::kFinished));
    free_what_is_for_going_on();
    return report_;
  }

 private:
  Result<void> drive() {
    ASSIGN_OR_RETURN(Layout layout, make_layout(config_, decoder_));
    Result<Workers> workers = Workers::open(config_, layout,
                                            {.folder = report_.folder,
                                             .run = report_.run,
                                             .command = options_.worker_command,
                                             .cluster = cluster_,
                                             .cancelled = hooks_.should_stop});
    if (!workers.ok() && workers.error().code == ErrorCode::kCancelled) return stopped();
    if (!workers.ok()) return workers.error();
    workers_ = std::move(workers).value();
    const bool resumed = workers_->controller().resumed();
    if (hooks_.on_start) hooks_.on_start(report_.run, report_.parameters, resumed);
    ASSIGN_OR_RETURN(const RunStart start, find_start(config_, inputs_, cluster_, record_, resumed));
    if (config_.elastic.on() && !config_.saves_after(config_.checkpoint.every_steps)) {
      LOG_WARN(
          "run {}: elastic.min_data goes on from checkpoints, and checkpoint.every_steps makes none before "
          "the end: a worker that is lost for good costs all steps from {} on",
          report_.run, start.step);
    }
    next_step_ = start.step;
    saver_.emplace(*workers_, record_, metrics_, CheckpointSaver::Place{.step = start.step, .folder = ""});
    notes_.begin_after(start.step);
    if (rewinds(config_.guard) || config_.elastic.on()) record_.keep_checkpoint(start.step);
    mesh_.emplace(ElasticMesh::Parts{.config = config_,
                                     .decoder = decoder_,
                                     .inputs = inputs_,
                                     .workers = *workers_,
                                     .saver = *saver_,
                                     .record = record_,
                                     .notes = notes_,
                                     .wait_for = [this](const Future& future) { return wait_for(future); }},
                  start, std::move(layout));
    Result<void> done = mesh_->begin();
    notes_.begin();
    if (done.ok()) done = to_the_end();
    while (!done.ok() && mesh_->can_go_on()) {
      done = go_on_with_fewer();
      if (done.ok()) done = to_the_end();
    }
    RETURN_IF_ERROR(std::move(done));
    return workers_->controller().close();
  }
  Result<void> to_the_end() {
    RETURN_IF_ERROR(steps());
    return finish();
  }

  Result<void> steps() {
    const int64_t traced = config_.trace.written_after(config_.steps);
    while (next_step_ < config_.steps) {
      in_flight_.push_back(workers_->all().call(kStep, "", {.want_value = true, .cursor = next_step_}));
      const int64_t done = ++next_step_;
      const bool pauses = done == config_.steps || evaluates_after(done) || config_.saves_after(done) ||
                          config_.compares_after(done) || done == traced;
      RETURN_IF_ERROR(take_steps(pauses ? 0 : kStepsInFlight));
      if (next_step_ != done) continue;  // the guard has gone back, or a step is done again
      if (done == traced) {
        ASSIGN_OR_RETURN(const TraceWritten trace,
                         write_trace(*workers_, mesh_->layout(), config_.trace, report_.run, config_.steps));
        notes_.steps_go_on(trace.call);
        if (trace.to_file) report_.trace = config_.trace.file;
      }
      if (evaluates_after(done)) RETURN_IF_ERROR(evaluate(done));
      if (config_.saves_after(done)) RETURN_IF_ERROR(save(done));
      if (confirms_after(done)) RETURN_IF_ERROR(saver_->end());
    }
    if (!report_.losses.empty() &&
        std::ranges::none_of(report_.losses, [](double l) { return std::isfinite(l); }))
      return make_error(
          ErrorCode::kInvalid,
          "no step of {} had a loss that is a number, and none changed a weight: there is nothing to "
          "keep; look at the data, the learning rate and what the run began with",
          report_.run);
    notes_.end();
    return {};
  }
  bool evaluates_after(int64_t done) const {
    const int64_t every = config_.evaluate.every_steps;
    return !inputs_.validation.folder.empty() && (done == config_.steps || (every > 0 && done % every == 0));
  }

  // Half way to the next checkpoint the last one is surely on disk: from then on it can be gone on from.
  bool confirms_after(int64_t done) const {
    const int64_t every = config_.checkpoint.every_steps;
    return config_.elastic.on() && every > 0 && done % every == (every + 1) / 2 % every;
  }

  Error stopped() const {
    return make_error(ErrorCode::kCancelled,
                      "run {} was stopped after step {}; `flywheel train --resume {}` "
                      "goes on with it",
                      report_.run, notes_.steps_done(), report_.run);
  }

  Result<void> wait_for(const Future& future) {
    for (;;) {
      if (hooks_.should_stop && hooks_.should_stop()) return stopped();
      if (future.done()) return future.wait();
      (void)future.wait(Deadline::after_ms(100));
    }
  }

  // Waits for the oldest steps until at most `left` are under way.
  Result<void> take_steps(int64_t left) {
    while (std::ssize(in_flight_) > left) {
      const Future future = in_flight_.front();
      in_flight_.pop_front();
      if (Result<void> ended = wait_for(future); !ended.ok()) {
        if (future.replayed() && lacked_room(future)) return try_again(future);
        const std::optional<Mismatch> mismatch = mismatch_of(future);
        if (!mismatch) return ended;
        return note_mismatch(*mismatch, future);
      }
      ASSIGN_OR_RETURN(const std::string text, future.get(0));
      ASSIGN_OR_RETURN(const StepResult result, step_result_from_json(text));
      if (result.anomaly != Anomaly::kNone) {
        ASSIGN_OR_RETURN(const GuardAction action, note_event(result, future.replayed()));
        if (action == GuardAction::kRewind) return rewind(result);
      }
      if (!future.replayed()) note_lives();
      notes_.note_step(result, future.replayed(), {workers_->all().status(), saver_->newest().step});
    }
    return {};
  }

  void note_lives() {
    if (!std::exchange(lives_noted_, true)) notes_.note_lives(workers_->controller().lives());
  }

  // The oldest step that was under way, with which an earlier controller ended: those behind it have not
  // happened either.
  Result<void> try_again(const Future& step) {
    next_step_ -= std::ssize(in_flight_) + 1;
    RETURN_IF_ERROR(forget_steps());
    notes_.steps_go_on(step);
    return {};
  }
  // How those under way end is no news: they are computed on what is given up.
  Result<void> forget_steps() {
    for (const Future& later : in_flight_) {
      const Result<void> ended = wait_for(later);
      if (!ended.ok() && ended.error().code == ErrorCode::kCancelled) return ended;
    }
    in_flight_.clear();
    return {};
  }

  // What the guard has caught: for the record, and what becomes of it. The error that stops the run.
  Result<GuardAction> note_event(const StepResult& result, bool replayed) {
    GuardEvent event{.anomaly = result.anomaly,
                     .action = action_on(config_.guard, result.anomaly),
                     .step = notes_.steps_done() + 1,
                     .loss = result.loss,
                     .gradient_norm = result.gradient_norm,
                     .batch = result.batch,
                     .events = result.events};
    if (event.events > config_.guard.max_events) event.action = GuardAction::kStop;
    if (event.action == GuardAction::kRewind) {
      RETURN_IF_ERROR(saver_->end());
      event.rewound_to = saver_->newest().step;
    }
    notes_.note(event, replayed);
    if (event.action == GuardAction::kStop)
      return make_error(ErrorCode::kInvalid, "{}", refusal(config_.guard, event));
    return event.action;
  }

  // Why the step failed, if it is that replicas differ.
  static std::optional<Mismatch> mismatch_of(const Future& step) {
    for (const Error& error : step.failures()) {
      if (auto mismatch = mismatch_from_text(error.message)) return mismatch;
    }
    return std::nullopt;
  }

  // The runtime has undone the step, and none is under way. It is done again, at once or, where the run
  // stops, by whoever goes on with it.
  Result<void> note_mismatch(Mismatch mismatch, const Future& step) {
    DigestEvent event{.mismatch = std::move(mismatch),
                      .action = config_.digests.on_mismatch,
                      .events = std::ssize(report_.digest_events) + 1};
    if (event.events > config_.digests.max_events) event.action = MismatchAction::kStop;
    notes_.note(event, step.replayed());
    if (!step.replayed()) {
      if (event.action == MismatchAction::kStop)
        return make_error(ErrorCode::kCorrupt, "{}", refusal(config_.digests, event));
      workers_->all().replace(event.mismatch.ranks, what_happened(event));
    }
    notes_.steps_go_on(step);
    next_step_ = event.mismatch.step - 1;
    return {};
  }

  // Back to the newest checkpoint, and on with the batch after the bad one.
  Result<void> rewind(const StepResult& bad) {
    RETURN_IF_ERROR(forget_steps());
    ASSIGN_OR_RETURN(next_step_, mesh_->rewind(bad));
    return {};
  }

  // Workers were lost for good, and the mesh is closed.
  Result<void> go_on_with_fewer() {
    in_flight_.clear();
    ASSIGN_OR_RETURN(next_step_, mesh_->go_on_with_fewer());
    return {};
  }

  // They are for going on; a finished run does not, and they are as large as its state. Not before the store
  // says that it is finished: a controller that died until then is taken up with them.
  void free_what_is_for_going_on() {
    if (const auto pruned = record_.release_checkpoints(); !pruned.ok())
      LOG_WARN("older checkpoints of {}: {}", report_.run, pruned.error().to_string());
    if (const auto removed = remove_all(report_.folder + "/watermarks"); !removed.ok())
      LOG_WARN("watermarks of {}: {}", report_.run, removed.error().to_string());
  }

  // No step is under way.
  Result<void> evaluate(int64_t done) {
    const Future future =
        workers_->all().call(kEvaluate, "", {.want_value = true, .cursor = config_.evaluate.sequences});
    RETURN_IF_ERROR(wait_for(future));
    ASSIGN_OR_RETURN(const std::string text, future.get(0));
    ASSIGN_OR_RETURN(const Json json, parse_json(text));
    notes_.note_evaluation(done, json.value("loss", 0.0));
    notes_.steps_go_on(future);
    return {};
  }

  // Starts to write a checkpoint. Training goes on meanwhile.
  Result<void> save(int64_t done) {
    ASSIGN_OR_RETURN(const Future future, saver_->begin(done, report_.loss));
    notes_.steps_go_on(future);
    if (mesh_->whole()) return {};
    ASSIGN_OR_RETURN(const std::optional<int64_t> changed, mesh_->grow(done));
    if (changed) next_step_ = *changed;
    return {};
  }

  Result<void> finish() {
    RETURN_IF_ERROR(
        saver_->save_last(config_.steps, report_.loss, [this](const Future& f) { notes_.steps_go_on(f); }));
    report_.sha256 = saver_->sha256();
    report_.checkpoint = saver_->artifact();
    RETURN_IF_ERROR(compare_digests());
    note_lives();  // of a run that lacked no step any more
    notes_.note_recoveries(workers_->all().status(), config_.steps);
    Json metadata = {{"loss", report_.loss},
                     {"parameters", report_.parameters},
                     {"steps", config_.steps},
                     {"tokens", report_.tokens},
                     {"sha256", report_.sha256}};
    if (report_.validation_loss >= 0) metadata["validation_loss"] = report_.validation_loss;
    const std::string folder = record_.checkpoint_folder(config_.steps) + "/model";
    ASSIGN_OR_RETURN(const Artifact model, record_.put_model(folder, config_.steps, metadata));
    report_.model = model.ref();
    notes_.write_metrics();
    report_.chart = report_.folder + "/loss.svg";
    return write_file(report_.chart, loss_chart(report_).svg());
  }

  // Workers that hold the same weights and optimizer state, or one of the machines computes wrongly.
  Result<void> compare_digests() {
    const Future digest = workers_->all().call(kDigest, "", {.want_value = true});
    const Layout& layout = mesh_->layout();
    for (const int holder : layout.holders()) {
      ASSIGN_OR_RETURN(const std::string sha256, digest.get(holder));
      for (const int replica : layout.alike(holder)) {
        ASSIGN_OR_RETURN(const std::string other, digest.get(replica));
        if (other == sha256) continue;
        return make_error(ErrorCode::kCorrupt, "workers {} and {} have other weights after the last step",
                          holder, replica);
      }
    }
    return {};
  }

  TrainConfig config_;
  TrainOptions options_;
  TrainHooks hooks_;
  runtime::Cluster cluster_;
  Inputs inputs_;
  RunRecord record_;
  model::Decoder decoder_;
  TrainMetrics metrics_;
  TrainReport report_;
  RunNotes notes_;
  std::optional<Workers> workers_;
  std::optional<CheckpointSaver> saver_;
  std::optional<ElasticMesh> mesh_;
  std::deque<Future> in_flight_;  // steps called and not yet taken
  int64_t next_step_ = 0;
  bool lives_noted_ = false;
};

// Workers on other hosts say so themselves.
void check_gpus(const TrainConfig& config) {
  if (emulates_device()) return;
  const int gpus = kernels::device_count();
  if (gpus == 0) {
    const auto none = kernels::Device::open(0);
    throw UserError(
        "device", fmt::format("gpu: {}; set it to cpu", none.ok() ? "there is none" : none.error().message));
  }
  if (gpus < config.mesh.workers()) {
    throw UserError("mesh.data", fmt::format("{} workers compute on a GPU each, and this machine has {}",
                                             config.mesh.workers(), gpus));
  }
}

}  // namespace

Result<TrainReport> run_training(const TrainConfig& as_given, const TrainOptions& options,
                                 const TrainHooks& hooks) {
  check(as_given);
  check_place(as_given.trace);
  if (as_given.mesh.workers() > runtime::kMostRanks)
    throw UserError("mesh", fmt::format("at most {} workers can be in a run", runtime::kMostRanks));
  runtime::Cluster cluster = options.cluster ? *options.cluster : find_hosts(as_given.mesh);
  ASSIGN_OR_RETURN(Store store, Store::open());
  ASSIGN_OR_RETURN(Inputs inputs, find_inputs(store, as_given));
  TrainConfig config = with_inputs_named(as_given, inputs);
  config.device = choose_device(config, decoder_of(config, inputs.decoder), kernels::device_count());
  can_train(config, decoder_of(config, inputs.decoder)).value_or_throw();  // before there is a run
  if (config.device == DeviceChoice::kGpu && !options.cluster && config.mesh.hosts.empty())
    check_gpus(config);
  ASSIGN_OR_RETURN(RunRecord record, RunRecord::open(std::move(store), config, options, inputs.refs()));
  return Program(config, options, hooks, std::move(cluster), std::move(inputs), std::move(record)).run();
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
