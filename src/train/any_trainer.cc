#include "train/any_trainer.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "train/device_trainer.h"
#include "train/trainer.h"

namespace flywheel::train {

Sequences part_of(const data::Batch& batch, int64_t first, int64_t count) {
  const auto part = [&](const auto& values, int64_t row) {
    std::span all(values);
    return all.empty() ? all
                       : all.subspan(static_cast<size_t>(first * row), static_cast<size_t>(count * row));
  };
  return {count, batch.length, part(batch.tokens, batch.length + 1), part(batch.counts, batch.length),
          part(batch.begins, batch.length)};
}

int64_t targets_of(const data::Batch& batch) {
  if (batch.counts.empty()) return batch.sequences * batch.length;
  return std::count(batch.counts.begin(), batch.counts.end(), 1);
}

double AnyTrainer::next_lr() const {
  const OptimizerConfig& optimizer = config_.optimizer;
  return scheduled_lr(
      config_.schedule,
      {.lr = optimizer.lr, .min_lr = optimizer.min_lr, .warmup_steps = optimizer.warmup_steps}, updates_,
      config_.steps);
}

Result<double> AnyTrainer::validation_loss(double loss) const {
  if (std::isfinite(loss)) return loss;
  return make_error(ErrorCode::kInvalid,
                    "the validation loss after {} steps is {}; lower optimizer.lr or lengthen the warm-up",
                    next_step_, loss);
}

void AnyTrainer::end_step(StepResult& result) {
  if (result.anomaly != Anomaly::kNone) ++guard_.events;
  result.batch = next_batch();
  result.events = guard_.events;
  ++next_step_;
}

void AnyTrainer::go_on(int64_t batch, int64_t events) {
  guard_.data_offset = batch - next_step_;
  guard_.events = events;
}

TrainerSnapshot AnyTrainer::snapshot() {
  TrainerSnapshot made;
  snapshot(made);
  return made;
}

void AnyTrainer::hand_over(TrainerSnapshot& into) const {
  into.next_step = next_step_;
  into.updates = updates_;
  into.seed = config_.seed;
  into.loss_scale = loss_scale_;
  into.guard = guard_;
}

void AnyTrainer::take_over_rest(const TrainerStateView& state) {
  next_step_ = state.next_step;
  updates_ = state.updates;
  if (loss_scale_.has_value() && state.loss_scale.has_value()) loss_scale_ = state.loss_scale;
  guard_ = state.guard;
}

Result<std::unique_ptr<AnyTrainer>> make_trainer(const TrainConfig& config, const Layout& layout,
                                                 const MeshPlace& place, ThreadPool& pool) {
  CHECK(config.device != DeviceChoice::kAuto, "a trainer is told what it computes on");
  std::unique_ptr<AnyTrainer> trainer;
  if (config.device == DeviceChoice::kCpu) {
    trainer = std::make_unique<Trainer>(config, layout, place, pool);
  } else {
    ASSIGN_OR_RETURN(trainer, DeviceTrainer::open(config, layout, place, pool));
  }
  return trainer;
}

}  // namespace flywheel::train
