// What a training run ended with, and its loss as a picture.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/plot.h"

namespace flywheel::train {

struct TrainReport {
  std::string run, model, checkpoint;  // ids and refs in the store
  std::string folder;                  // of the run: logs, loss.svg, checkpoints
  std::string sha256;                  // over weights and optimizer state
  std::string chart;                   // loss.svg
  int64_t parameters = 0, steps = 0, tokens = 0;
  double loss = 0, validation_loss = -1;  // -1: not evaluated
  double seconds = 0, tokens_per_second = 0, limit_share = 0;
  int recoveries = 0;
  double recovery_seconds = 0;
  std::vector<double> losses;  // of every step
  std::vector<int64_t> evaluation_steps;
  std::vector<double> evaluation_losses;
};

// Loss over steps, of training and of validation.
Chart loss_chart(const TrainReport& report);

}  // namespace flywheel::train
