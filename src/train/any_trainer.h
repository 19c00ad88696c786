// What a worker drives: a trainer whose model lies in main memory (trainer.h) or on a device
// (device_trainer.h). Both take the same batches, decide alike what becomes of a step, and have the same
// state: what one's snapshot() gives, the other's restore() takes.
//
//   ASSIGN_OR_RETURN(const auto trainer, make_trainer(config, layout, layout.place(rank), pool));
//   trainer->initialize(config.seed);
//   ASSIGN_OR_RETURN(StepResult result, trainer->step(batch, links));
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/thread_pool.h"
#include "data/shards.h"
#include "model/weights.h"
#include "train/config.h"
#include "train/layout.h"
#include "train/links.h"
#include "train/network.h"
#include "train/routing.h"
#include "train/trainer_state.h"
#include "train/whole_state.h"

namespace flywheel::train {

struct StepResult {
  double loss = 0;           // mean over the tokens of the global batch, in nats
  double gradient_norm = 0;  // before clipping; 0 where it overflowed fp16
  double lr = 0;
  int64_t tokens = 0;     // of the global batch
  bool skipped = false;   // no update: gradients overflowed fp16, or `anomaly`
  double loss_scale = 1;  // of this step
  Anomaly anomaly = Anomaly::kNone;
  int64_t batch = 0;                                  // that it read
  int64_t events = 0;                                 // of the guard, so far
  std::optional<RouterReport> router = std::nullopt;  // of a model with experts
};

class AnyTrainer {
 public:
  virtual ~AnyTrainer() = default;
  AnyTrainer(const AnyTrainer&) = delete;
  AnyTrainer& operator=(const AnyTrainer&) = delete;

  // The weights that a run begins with: drawn (a pure function of `seed`), or a model's. Errors: kNotFound,
  // kInvalid for a source that lacks a weight or has it in another shape; of the disk.
  virtual void initialize(uint64_t seed) = 0;
  virtual Result<void> load(const model::WeightSource& source) = 0;

  // `batch`: the sequences of this data rank, whole on every context rank. On an error go back to a snapshot,
  // unless the trainer says that nothing has changed.
  virtual Result<StepResult> step(const data::Batch& batch, const Links& links) = 0;
  // Mean loss over `samples` sequences of `sampler`'s set in its own order, shared over the ranks that have
  // sequences of their own.
  virtual Result<double> evaluate(const data::Sampler& sampler, int64_t samples, const Links& links) = 0;

  int64_t next_step() const { return next_step_; }
  int64_t next_batch() const { return next_step_ + guard_.data_offset; }
  // After a state of before was restored: the guard's events stay counted, and the next step reads `batch`.
  void go_on(int64_t batch, int64_t events);

  TrainerSnapshot snapshot();
  virtual void snapshot(TrainerSnapshot& into) = 0;  // the same, into memory that is there
  // Of a state that is not shared out, what `shares` say of it: buckets as of the trainer's own, at stage 1.
  // Into memory that is empty, or of the same shares before.
  virtual void snapshot(const Shares& shares, TrainerSnapshot& into) = 0;
  // Of snapshot(), or of the whole model. kCorrupt, kInvalid (another model's); then nothing was changed, but
  // where the state lies in files and their disk is full: then restore() another one
  // (OffloadedState::fill()).
  virtual Result<void> restore(std::string_view bytes) = 0;
  virtual Result<void> restore_whole(WholeState& whole) = 0;  // of a checkpoint, in one file or in shards
  // Over weights, optimizer state and loss scale.
  virtual std::string sha256() = 0;

 protected:
  explicit AnyTrainer(const TrainConfig& config) : config_(config) {}
  double next_lr() const;
  // Of an evaluation over the whole mesh. kInvalid for one that is not finite.
  Result<double> validation_loss(double loss) const;
  // Of a step that has been decided on: what it says of guard and data, and on to the next.
  void end_step(StepResult& result);
  void hand_over(TrainerSnapshot& into) const;         // all but weights and optimizer state
  void take_over_rest(const TrainerStateView& state);  // the same

  TrainConfig config_;
  int64_t next_step_ = 0, updates_ = 0;
  std::optional<LossScale> loss_scale_;  // of fp16
  GuardState guard_;
};

// Sequences [first, first + count) of a batch.
Sequences part_of(const data::Batch& batch, int64_t first, int64_t count);
// Targets that the loss is of.
int64_t targets_of(const data::Batch& batch);

// The trainer of config.device, which is not auto. kUnavailable: its host has no such device; kFull: the
// device's memory is too small, with what would fit.
Result<std::unique_ptr<AnyTrainer>> make_trainer(const TrainConfig& config, const Layout& layout,
                                                 const MeshPlace& place, ThreadPool& pool);

}  // namespace flywheel::train
