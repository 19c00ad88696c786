// One worker's share of a training step: forward and backward of its part of the model over its sequences,
// the sum of gradients over the workers, clipping, AdamW.
//
// Workers that hold the same weights compute the same update, bit for bit: gradients are summed in rank order
// (runtime/collectives.h), everything after that is the same on all.
// The gradient is the mean over all valid tokens of the global batch, however it is cut into workers and
// microbatches.
//
// A snapshot holds all that a step depends on (weights, moments, number of the next step), so that a trainer
// restored from it goes on with the same bits. docs/formats/trainer_state.md. snapshot() is this rank's;
// whole_snapshot() is the model's, which any mesh goes on from.
//
// Ownership: owns model and optimizer; borrows layout, pool and communicators. Threads: one at a time.
//
//   ASSIGN_OR_RETURN(const Layout layout, make_layout(config, describe(decoder_config)));
//   Trainer trainer(config, layout, layout.place(rank), pool);
//   trainer.parameters().initialize(config.seed);
//   ASSIGN_OR_RETURN(StepResult result, trainer.step(batch, {.replicas = communicator, .deadline =
//   deadline}));
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/deadline.h"
#include "data/shards.h"
#include "runtime/collectives.h"
#include "train/config.h"
#include "train/layout.h"
#include "train/network.h"
#include "train/parameters.h"
#include "train/pipeline.h"

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
  // What docs/formats/trainer_state.md says: the header, then the buffers where they lie.
  std::string header() const;
  std::array<std::string_view, 3> buffers() const;
  std::string sha256() const;  // over weights and moments
};

class Trainer {
 public:
  // Of `place`, the data coordinate does not matter: ranks along it are alike.
  Trainer(const TrainConfig& config, const Layout& layout, const MeshPlace& place, ThreadPool& pool);

  // `batch`: the sequences of this data rank. On an error nothing of the state has changed.
  Result<StepResult> step(const data::Batch& batch, const Links& links);
  // Mean loss over `samples` sequences of `sampler`'s set in its own order, shared over the data ranks.
  Result<double> evaluate(const data::Sampler& sampler, int64_t samples, const Links& links);

  int64_t next_step() const { return next_step_; }
  Parameters& parameters() { return parameters_; }
  const model::Decoder& decoder() const { return layout_.decoder; }
  TrainerSnapshot snapshot();
  void snapshot(TrainerSnapshot& into);  // the same, into memory that is there
  // The whole model's on rank 0, empty elsewhere. Every rank of the mesh calls it.
  Result<TrainerSnapshot> whole_snapshot(const Links& links);
  // Of snapshot(), or of whole_snapshot(). kCorrupt, kInvalid (another model's); then nothing was changed.
  Result<void> restore(std::string_view bytes);
  Result<void> restore_whole(std::string_view bytes);
  std::string sha256() const { return parameters_.sha256(); }

 private:
  // What remains to be summed after the backward: over tensor ranks, between the stages that share the
  // embedding, and over the data ranks.
  void sum_gradients();
  bool counts(const WeightShard& shard) const;

  TrainConfig config_;
  const Layout& layout_;
  MeshPlace place_;
  LocalDecoder local_;
  Links links_;
  Parameters parameters_;
  Network network_;
  Pipeline pipeline_;
  int64_t next_step_ = 0;
};

}  // namespace flywheel::train
