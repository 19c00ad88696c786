#include "train/run_notes.h"

#include <map>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "train/operations.h"

namespace flywheel::train {
namespace {

constexpr double kMetricsSeconds = 10;  // between two writes of metrics.prom

int64_t steps_of(const std::map<std::string, int64_t>& calls) {
  const auto steps = calls.find(kStep);
  return steps == calls.end() ? 0 : steps->second;
}

}  // namespace

void RunNotes::begin_after(int64_t steps) {
  first_step_ = told_checkpoint_ = steps;
  data_ranks_ = config_.mesh.data;
  metrics_.data_ranks.set(static_cast<double>(data_ranks_));
}

void RunNotes::begin() {
  clock_.restart();
  meter_.begin(0);
}

void RunNotes::steps_go_on(const runtime::Future& other) {
  if (other.replayed()) {
    meter_.forget();
  } else {
    steps_go_on();
  }
}

void RunNotes::end() {
  report_.seconds = clock_.seconds();
  report_.tokens_per_second = meter_.average_tokens_per_second();
  if (report_.tokens_per_second && meter_.knows_limit())
    report_.limit_share = meter_.limit_share(*report_.tokens_per_second);
}

void RunNotes::note_step(const StepResult& result, bool replayed, const MeshNow& mesh) {
  const int64_t done = steps_done() + 1;
  report_.losses.push_back(result.loss);
  if (result.anomaly != Anomaly::kNan) report_.loss = result.loss;
  report_.tokens += result.tokens;
  if (replayed) {  // what the log answered took no time and says nothing about speed
    meter_.forget();
  } else {
    meter_.step(result.tokens, clock_.seconds());
    metrics_.steps.add(1);
    metrics_.tokens.add(static_cast<double>(result.tokens));
    if (const auto seconds = meter_.last_step_seconds()) metrics_.step_seconds.observe(*seconds);
  }
  record_.run().log_metrics(
      done, {{"loss", result.loss}, {"lr", result.lr}, {"gradient_norm", result.gradient_norm}});
  std::optional<double> rate, share;
  if (!replayed) rate = meter_.tokens_per_second();
  if (rate) {
    metrics_.tokens_per_second.set(*rate);
    if (meter_.knows_limit()) {
      share = meter_.limit_share(*rate);
      record_.run().log_metrics(done, {{"tokens_per_second", *rate}, {"mfu", *share}});
      metrics_.mfu.set(*share);
    } else {
      record_.run().log_metric("tokens_per_second", done, *rate);
    }
  }
  if (result.router.has_value()) note_routing(done, *result.router);
  if (config_.precision == Precision::kFP16) record_.run().log_metric("loss_scale", done, result.loss_scale);
  if (result.skipped && result.anomaly == Anomaly::kNone && !replayed)
    LOG_INFO("step {} is skipped: gradients overflow fp16 at a loss scale of {}", done, result.loss_scale);
  metrics_.loss.set(result.loss);
  metrics_.lr.set(result.lr);
  metrics_.gradient_norm.set(result.gradient_norm);
  note_recoveries(mesh.status, done);
  if (mesh.newest_checkpoint > told_checkpoint_) {
    told_checkpoint_ = mesh.newest_checkpoint;
    tell(told_checkpoint_, "checkpoint written");
  }
  if (mesh.status.slowest_rank >= 0 && !replayed)
    record_.run().log_metric("straggler_ratio", done, mesh.status.slowest_ratio);
  if (since_metrics_.seconds() > kMetricsSeconds) write_metrics();
  if (!hooks_.on_step) return;
  hooks_.on_step({.step = done,
                  .steps = config_.steps,
                  .loss = result.loss,
                  .gradient_norm = result.gradient_norm,
                  .lr = result.lr,
                  .tokens_per_second = rate,
                  .limit_share = share,
                  .recoveries = report_.recoveries,
                  .recovery_seconds = mesh.status.last_recovery_seconds,
                  .lost_seconds = mesh.status.last_recovery.seconds,
                  .data_ranks = data_ranks_,
                  .worker_pids = mesh.status.pids,
                  .resident_bytes = mesh.status.resident_bytes});
}

void RunNotes::note_routing(int64_t done, const RouterReport& router) {
  record_.run().log_metrics(done, {{"expert_imbalance", router.imbalance},
                                   {"balance_loss", router.balance_loss},
                                   {"router_z_loss", router.z_loss},
                                   {"dropped_share", router.dropped}});
  for (size_t i = 0; i < router.load.size(); ++i) {
    for (size_t e = 0; e < router.load[i].size(); ++e)
      record_.run().log_metric(fmt::format("expert_load.{}.{}", router.layers[i], e), done,
                               router.load[i][e]);
  }
}

void RunNotes::note_lives(const runtime::Lives& lives) {
  report_.taken_up = lives.taken_up;
  metrics_.taken_up.set(lives.taken_up);
  if (lives.taken_up == 0) return;
  const int64_t now = steps_of(lives.done_again_now);
  report_.steps_done_again += steps_of(lives.done_again);
  metrics_.steps_done_again.add(static_cast<double>(now));
  record_.run().log_metrics(steps_done(), {{"taken_up", static_cast<double>(lives.taken_up)},
                                           {"taken_up_steps", static_cast<double>(now)}});
  tell(steps_done(), fmt::format("the run was taken up again; steps that were done again: {}", now));
}

void RunNotes::note_recoveries(const runtime::MeshStatus& status, int64_t done) {
  metrics_.snapshot_interval.set(status.watermark_interval_seconds);
  const int news = status.recoveries - std::exchange(recoveries_of_mesh_, status.recoveries);
  if (news == 0) return;
  const runtime::Recovery& last = status.last_recovery;
  tell(done, fmt::format("a worker was lost; recovered by replay in {}", human_seconds(last.seconds)));
  const int64_t steps = steps_of(last.done_again);
  const bool from_disk = last.from == runtime::RestoredFrom::kDisk;
  metrics_.recoveries.add(news);
  metrics_.recovery_seconds.observe(last.seconds_to_replay);
  metrics_.lost_seconds.observe(last.seconds);
  metrics_.steps_done_again.add(static_cast<double>(steps));
  record_.run().log_metrics(done, {{"recovery_lost_seconds", last.seconds},
                                   {"recovery_steps", static_cast<double>(steps)},
                                   {"recovery_from_disk", from_disk ? 1.0 : 0.0},
                                   {"snapshot_interval_seconds", last.interval_seconds},
                                   {"young_interval_seconds", last.young_seconds}});
  report_.recoveries += news;
  report_.recovery_seconds = last.seconds_to_replay;
  report_.lost_seconds += last.seconds;
  report_.steps_done_again += steps;
}

void RunNotes::note_evaluation(int64_t done, double loss) {
  report_.validation_loss = loss;
  report_.evaluation_steps.push_back(done);
  report_.evaluation_losses.push_back(loss);
  record_.run().log_metric("validation_loss", done, loss);
  metrics_.validation_loss.set(loss);
  if (hooks_.on_evaluate) hooks_.on_evaluate(done, loss);
}

// One that stops the run is its error, which says it.
void RunNotes::note(const GuardEvent& event, bool replayed) {
  report_.guard_events.push_back(event);
  log_event(event, "guard.json");
  if (replayed) return;
  metrics_.guard_events.add(1);
  if (event.action == GuardAction::kStop) return;
  LOG_WARN("run {}: {}", report_.run, describe(event));
  tell(event.step, describe(event));
}

void RunNotes::note(const DigestEvent& event, bool replayed) {
  report_.digest_events.push_back(event);
  log_event(event, "digests.json");
  if (replayed) return;
  metrics_.digest_mismatches.add(1);
  if (event.action != MismatchAction::kStop) LOG_WARN("run {}: {}", report_.run, describe(event));
}

void RunNotes::note(const MeshChange& change, bool replayed) {
  report_.mesh_changes.push_back(change);
  log_event(change, "elastic.json");
  if (!replayed) LOG_WARN("run {}: {}", report_.run, describe(change));
  data_ranks_ = change.after;
  metrics_.data_ranks.set(static_cast<double>(data_ranks_));
  recoveries_of_mesh_ = 0;  // another mesh
}

template <typename Event>
void RunNotes::log_event(const Event& event, const char* file) {
  if (const Result<void> logged = record_.log_event(event); !logged.ok())
    LOG_WARN("{} of {}: {}", file, report_.run, logged.error().to_string());
}

void RunNotes::tell(int64_t step, const std::string& what) {
  if (hooks_.on_event) hooks_.on_event(step, what);
}

void RunNotes::write_metrics() {
  since_metrics_.restart();
  const auto written = write_file(report_.folder + "/metrics.prom", Metrics::global().prometheus_text());
  if (!written.ok()) LOG_WARN("metrics of {}: {}", report_.run, written.error().to_string());
}

}  // namespace flywheel::train
