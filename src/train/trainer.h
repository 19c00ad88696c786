// One worker's share of a training step: forward and backward of its part of the model over its sequences,
// the sum of gradients over the workers, clipping, the optimizer's update.
//
// Workers that hold the same weights compute the same update, bit for bit: gradients are summed in rank order
// (runtime/collectives.h), everything after that is the same on all. Where weights and state are shared out
// (shares.h), each updates its share, and the next step gathers what it reads.
// The gradient is the mean over all targets that count of the global batch, however it is cut into workers
// and microbatches. Routers of experts add the gradients of their own losses (kernels/route.h), which are no
// part of the loss that is told; and after a step each expert's bias of the choice moves against its load
// (router.bias_rate; Wang et al. 2024), in the weights, which a snapshot holds.
//
// In fp16 a step whose gradients overflow is skipped, and so is one that the guard catches (guard.h): by all
// workers or none, as loss and norm over all of them decide.
//
// A snapshot holds all that a step depends on (weights, optimizer state, loss scale, guard, number of the
// next step), so that a trainer restored from it goes on with the same bits (train/trainer_state.h).
// snapshot() is this rank's; a checkpoint of all ranks' is the model's, which any mesh goes on from.
//
// Ownership: owns model and optimizer; borrows layout, pool and communicators. Threads: one at a time.
//
//   ASSIGN_OR_RETURN(const Layout layout, make_layout(config, describe(decoder_config)));
//   Trainer trainer(config, layout, layout.place(rank), pool);
//   trainer.parameters().initialize(config.seed);
//   ASSIGN_OR_RETURN(StepResult result, trainer.step(batch, {.replicas = communicator, .deadline =
//   deadline}));
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/deadline.h"
#include "data/shards.h"
#include "runtime/collectives.h"
#include "train/any_trainer.h"
#include "train/bucket_mover.h"
#include "train/config.h"
#include "train/digests.h"
#include "train/layout.h"
#include "train/network.h"
#include "train/optimizer.h"
#include "train/parameters.h"
#include "train/pipeline.h"
#include "train/trainer_state.h"
#include "train/whole_state.h"

namespace flywheel::train {

class Trainer final : public AnyTrainer {
 public:
  // Where the state is not shared out (mesh.zero), the data coordinate of `place` does not matter: ranks
  // along the axis are alike.
  Trainer(const TrainConfig& config, const Layout& layout, const MeshPlace& place, ThreadPool& pool);

  // `batch`: the sequences of this data rank, whole on every context rank. On an error nothing of the state
  // has changed; but where ranks lose each other while they update cut matrices together (optimizer.h),
  // replicas differ (digests.h: kCorrupt), or a disk fails that has the optimizer's state, go back to a
  // snapshot.
  Result<StepResult> step(const data::Batch& batch, const Links& links) override;
  Result<double> evaluate(const data::Sampler& sampler, int64_t samples, const Links& links) override;

  void initialize(uint64_t seed) override { parameters_.initialize(seed); }
  Result<void> load(const model::WeightSource& source) override { return parameters_.load(source); }
  Parameters& parameters() { return parameters_; }
  const model::Decoder& decoder() const { return layout_.decoder; }
  using AnyTrainer::snapshot;
  void snapshot(TrainerSnapshot& into) override;
  void snapshot(const Shares& shares, TrainerSnapshot& into) override;
  Result<void> restore(std::string_view bytes) override;
  Result<void> restore_whole(std::string_view bytes);
  Result<void> restore_whole(WholeState& whole) override;
  std::string sha256() override;

 private:
  bool counts(const WeightShard& shard) const;
  double squared_share();
  Result<void> digest(Digested what);
  float gradient_scale() const;
  void balance_experts(Routing& routing, size_t held, int64_t first, std::span<float> weights) const;
  // What is held of the flat weights, in f32 and in pieces: where they lie, mapped where they are in files,
  // or put into `room` where they are kept in bf16.
  std::vector<std::span<const float>> weight_pieces(std::vector<float>& room);
  // Other weights and optimizer state; and where each of shares().held() goes among the weights.
  template <typename Fill>
  Result<void> take_values(const Fill& fill);
  const std::vector<FlatWeight>& places() const;
  void take_over(const TrainerStateView& state);  // all but weights and optimizer state

  const Layout& layout_;
  MeshPlace place_;
  LocalDecoder local_;
  Links links_;
  ThreadPool& pool_;
  Parameters parameters_;
  Optimizer optimizer_;
  std::optional<FiledWeights> filed_;  // where the f32 weights lie in the optimizer's file
  BucketMover mover_;
  std::unique_ptr<Network> network_;
  Pipeline pipeline_;
  StepDigests digests_;  // of the step at hand, where replicas are compared
};

}  // namespace flywheel::train
