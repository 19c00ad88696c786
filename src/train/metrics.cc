#include "train/metrics.h"

namespace flywheel::train {
namespace {

const std::vector<double> kStepEdges = {0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60};
const std::vector<double> kRecoveryEdges = {0.1, 0.25, 0.5, 1, 2, 3, 4, 5, 10, 30, 60};
const std::vector<double> kStallEdges = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5};

Counter& counter(const std::string& run, const char* name, const char* help) {
  return Metrics::global().counter(name, help, {{"run", run}});
}
Gauge& gauge(const std::string& run, const char* name, const char* help) {
  return Metrics::global().gauge(name, help, {{"run", run}});
}
Histogram& histogram(const std::string& run, const char* name, const char* help,
                     const std::vector<double>& edges) {
  return Metrics::global().histogram(name, help, edges, {{"run", run}});
}

}  // namespace

TrainMetrics::TrainMetrics(const std::string& run)
    : steps(counter(run, "flywheel_train_steps_total", "Steps computed")),
      tokens(counter(run, "flywheel_train_tokens_total", "Tokens trained on")),
      recoveries(counter(run, "flywheel_train_recoveries_total", "Workers lost and replaced")),
      checkpoints(counter(run, "flywheel_train_checkpoints_total", "Checkpoints recorded")),
      checkpoints_missed(
          counter(run, "flywheel_train_checkpoints_missed_total", "Checkpoints that could not be written")),
      checkpoint_stall(histogram(run, "flywheel_train_checkpoint_stall_seconds",
                                 "Time that steps waited until workers had copied what a checkpoint takes",
                                 kStallEdges)),
      guard_events(counter(run, "flywheel_train_guard_events_total",
                           "Steps whose loss or gradient was not finite, or a spike")),
      digest_mismatches(
          counter(run, "flywheel_train_digest_mismatches_total", "Steps in which replicas differed")),
      data_ranks(gauge(run, "flywheel_train_data_ranks", "Data ranks of the mesh")),
      loss(gauge(run, "flywheel_train_loss_nats", "Loss per token of the last step")),
      validation_loss(
          gauge(run, "flywheel_train_validation_loss_nats", "Loss per token of the last evaluation")),
      gradient_norm(gauge(run, "flywheel_train_gradient_norm", "Norm of the gradient before clipping")),
      lr(gauge(run, "flywheel_train_learning_rate", "Learning rate of the last step")),
      tokens_per_second(
          gauge(run, "flywheel_train_tokens_per_second", "Tokens a second over the last seconds")),
      mfu(gauge(run, "flywheel_train_mfu_ratio",
                "Share of the machine's multiply-adds that went into the model")),
      snapshot_interval(
          gauge(run, "flywheel_train_snapshot_interval_seconds", "Time between snapshots in memory")),
      taken_up(gauge(run, "flywheel_train_taken_up",
                     "Times that a controller went on with what another one had begun")),
      steps_done_again(counter(run, "flywheel_train_steps_done_again_total",
                               "Steps computed once more after losses and when the run was taken up")),
      lost_seconds(histogram(run, "flywheel_train_recovery_lost_seconds",
                             "Time from noticing a loss until all was computed again", kRecoveryEdges)),
      step_seconds(histogram(run, "flywheel_train_step_seconds", "Time from step to step", kStepEdges)),
      recovery_seconds(histogram(run, "flywheel_train_recovery_seconds",
                                 "Time from noticing a loss to replay under way", kRecoveryEdges)) {}

}  // namespace flywheel::train
