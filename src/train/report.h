// What a training run ended with, and its loss as a picture.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/plot.h"
#include "train/digests.h"
#include "train/elastic.h"
#include "train/guard.h"

namespace flywheel::train {

struct TrainReport {
  std::string run, model, checkpoint;  // ids and refs in the store
  std::string folder;                  // of the run: logs, loss.svg, checkpoints
  std::string sha256;                  // over weights and optimizer state
  std::string chart;                   // loss.svg
  std::string trace;                   // the file, where steps were traced
  int64_t parameters = 0, steps = 0, tokens = 0;
  double loss = 0, validation_loss = -1;  // -1: not evaluated
  // Of this start, as the next three.
  double seconds = 0;
  // Nothing where the log answered all steps; no share where it is not known what a GPU can do.
  std::optional<double> tokens_per_second, limit_share;
  bool on_gpus = false;  // the workers computed there
  int recoveries = 0;
  double recovery_seconds = 0;  // of the last one, until replay was under way
  double lost_seconds = 0;      // by all of them, until all was computed again
  // Of the whole run, as far as its log goes back: how often a controller went on with it, and the steps that
  // were computed once more, for that and after losses.
  int taken_up = 0;
  int64_t steps_done_again = 0;
  std::vector<double> losses;  // of every step; NaN of those that the guard skipped for it
  std::vector<int64_t> evaluation_steps;
  std::vector<double> evaluation_losses;
  std::vector<GuardEvent> guard_events;
  std::vector<DigestEvent> digest_events;
  std::vector<MeshChange> mesh_changes;

  // Steps, of which the first was `first_step`, and evaluations after so many steps are not part of it: they
  // will be done again.
  void forget_after(int64_t first_step, int64_t steps_done);
};

// "38.7 k tokens/s, 14% of what the cores can multiply".
std::string speed_text(const TrainReport& report);

// Loss over steps, of training and of validation.
Chart loss_chart(const TrainReport& report);

}  // namespace flywheel::train
