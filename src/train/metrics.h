// What a training run counts, labelled with the run. Beside the store's metrics, which keep every step, these
// say how it stands now: run_training() leaves them in Prometheus' text format as metrics.prom in the run's
// folder, where a node exporter's textfile collector or a person finds them.
#pragma once

#include <string>

#include "base/metrics.h"

namespace flywheel::train {

struct TrainMetrics {
  explicit TrainMetrics(const std::string& run);

  Counter& steps;               // flywheel_train_steps_total; those that a log answered are not counted
  Counter& tokens;              // flywheel_train_tokens_total, the same
  Counter& recoveries;          // flywheel_train_recoveries_total
  Counter& checkpoints;         // flywheel_train_checkpoints_total
  Counter& checkpoints_missed;  // flywheel_train_checkpoints_missed_total: a full disk did not take them
  Histogram& checkpoint_stall;  // flywheel_train_checkpoint_stall_seconds: no step could begin meanwhile
  Counter& guard_events;        // flywheel_train_guard_events_total: steps that were NaN or a spike
  Counter& digest_mismatches;   // flywheel_train_digest_mismatches_total: steps in which replicas differed
  Gauge& data_ranks;            // flywheel_train_data_ranks: of the mesh as it is now
  Gauge& loss;                  // flywheel_train_loss_nats, of the last step, per token
  Gauge& validation_loss;       // flywheel_train_validation_loss_nats
  Gauge& gradient_norm;         // flywheel_train_gradient_norm, before clipping
  Gauge& lr;                    // flywheel_train_learning_rate
  Gauge& tokens_per_second;     // flywheel_train_tokens_per_second, over the last ten seconds
  Gauge& mfu;                   // flywheel_train_mfu_ratio: model FLOPs utilization, 0 to 1
  Gauge& snapshot_interval;     // flywheel_train_snapshot_interval_seconds, as it is now
  Gauge& taken_up;              // flywheel_train_taken_up: how often a controller went on with the run
  Counter& steps_done_again;    // flywheel_train_steps_done_again_total, after losses and when taken up
  Histogram& lost_seconds;      // flywheel_train_recovery_lost_seconds: noticing to all computed again
  Histogram& step_seconds;      // flywheel_train_step_seconds
  Histogram& recovery_seconds;  // flywheel_train_recovery_seconds: from noticing to replay under way
};

}  // namespace flywheel::train
