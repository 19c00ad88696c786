// One worker's share of a training step: forward and backward over its sequences, the sum of gradients over
// the workers, clipping, AdamW.
//
// Every worker holds the whole model and optimizer state and computes the same update, bit for bit: gradients
// are summed in rank order (runtime/collectives.h), everything after that is the same on all.
// The gradient is the mean over all valid tokens of the global batch, however it is cut into workers and
// micro-batches.
//
// serialize() holds all that a step depends on (weights, moments, number of the next step), so that a trainer
// restored from it goes on with the same bits. docs/formats/trainer_state.md.
//
// Ownership: owns model and optimizer; borrows pool and communicator. Threads: one at a time.
//
//   Trainer trainer(config, decoder_config, pool);
//   trainer.parameters().initialize(config.seed);
//   ASSIGN_OR_RETURN(StepResult result, trainer.step(batch, communicator, deadline));   // communicator: null
//   for one
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/deadline.h"
#include "data/shards.h"
#include "runtime/collectives.h"
#include "train/config.h"
#include "train/network.h"
#include "train/parameters.h"

namespace flywheel::train {

struct StepResult {
  double loss = 0;           // mean over the tokens of the global batch, in nats
  double gradient_norm = 0;  // before clipping
  double lr = 0;
  int64_t tokens = 0;  // of the global batch
};

// What serialize() needs, taken at one moment; the copy that makes a snapshot or checkpoint asynchronous.
struct TrainerSnapshot {
  int64_t next_step = 0;
  uint64_t seed = 0;
  std::vector<float> weights, first_moments, second_moments;
  // As docs/formats/trainer_state.md says, after `prefix`.
  std::string bytes(std::string_view prefix = {}) const;
};

class Trainer {
 public:
  Trainer(const TrainConfig& config, const model::DecoderConfig& decoder_config, ThreadPool& pool);

  // `batch` is this rank's part. On an error nothing of the state has changed.
  Result<StepResult> step(const data::Batch& batch, runtime::Communicator* communicator, Deadline deadline);
  // Mean loss over `samples` sequences of `sampler`'s set in its own order, shared over the ranks.
  Result<double> evaluate(const data::Sampler& sampler, int64_t samples, runtime::Communicator* communicator,
                          Deadline deadline);

  int64_t next_step() const { return next_step_; }
  Parameters& parameters() { return parameters_; }
  const model::Decoder& decoder() const { return decoder_; }
  TrainerSnapshot snapshot();
  void snapshot(TrainerSnapshot& into);  // the same, into memory that is there
  // kCorrupt, kInvalid (another model's); then nothing was changed.
  Result<void> restore(std::string_view bytes);
  std::string sha256() const { return parameters_.sha256(); }

 private:
  TrainConfig config_;
  model::Decoder decoder_;
  Parameters parameters_;
  Network network_;
  int64_t next_step_ = 0;
};

}  // namespace flywheel::train
