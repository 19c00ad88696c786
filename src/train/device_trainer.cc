#include "train/device_trainer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/progress.h"
#include "train/device_config.h"
#include "train/device_of_process.h"
#include "train/initial_weights.h"

namespace flywheel::train {
namespace {

constexpr int64_t kF32 = 4, kBf16 = 2;  // bytes

// Of a microbatch, at most.
DeviceBatchSize batch_size(const TrainConfig& config) {
  const int64_t ranks = config.mesh.replicas(), share = (config.batch.sequences + ranks - 1) / ranks;
  const int64_t micro = config.batch.micro_sequences;
  return {.sequences = micro > 0 ? std::min(micro, share) : share, .length = config.batch.length};
}

// What else would fit: smaller microbatches, then layers that forget all.
std::string what_fits(const TrainConfig& config, const model::Decoder& decoder, const DeviceWeights& weights,
                      int64_t free_bytes) {
  for (const Recompute recompute : {config.recompute, Recompute::kSelective, Recompute::kFull}) {
    for (DeviceBatchSize size = batch_size(config); size.sequences >= 1; size.sequences /= 2) {
      if (DevicePlan(decoder, weights, size, recompute).bytes() > free_bytes) continue;
      std::string text = fmt::format("set batch.micro_sequences to {}", size.sequences);
      if (recompute != config.recompute) text += fmt::format(" and recompute to {}", config_name(recompute));
      return text;
    }
  }
  return "this model is too large for it with AdamW's state";
}

}  // namespace

DeviceTrainer::DeviceTrainer(const TrainConfig& config, const Layout& layout, const MeshPlace& place,
                             ThreadPool& pool, kernels::Device& device, DeviceLayers layers)
    : AnyTrainer(config),
      layout_(layout),
      local_(layout.local(place)),
      shares_(local_, layout.share_of(place)),
      pool_(pool),
      device_(device),
      layers_(std::move(layers)),
      weights_(layout.decoder, layers_, config.optimizer),
      plan_(layout.decoder, weights_, batch_size(config), config.recompute),
      update_(config.optimizer, weights_) {}

Result<std::unique_ptr<DeviceTrainer>> DeviceTrainer::open(const TrainConfig& config, const Layout& layout,
                                                           const MeshPlace& place, ThreadPool& pool) {
  ASSIGN_OR_RETURN(kernels::Device * device, device_of_this_process());
  return open(config, layout, place, pool, *device);
}

Result<std::unique_ptr<DeviceTrainer>> DeviceTrainer::open(const TrainConfig& config, const Layout& layout,
                                                           const MeshPlace& place, ThreadPool& pool,
                                                           kernels::Device& device) {
  RETURN_IF_ERROR(check_device(config, layout.decoder));
  ASSIGN_OR_RETURN(DeviceLayers layers, device_layers(layout.decoder));
  std::unique_ptr<DeviceTrainer> trainer(
      new DeviceTrainer(config, layout, place, pool, device, std::move(layers)));
  RETURN_IF_ERROR(trainer->allocate());
  return trainer;
}

Result<void> DeviceTrainer::allocate() {
  const int64_t free_bytes = device_.free_bytes(), count = weights_.count();
  if (plan_.bytes() > free_bytes) {
    return make_error(ErrorCode::kFull, "{} needs {} of memory ({}), and {} are free; {}", device_.name(),
                      human_bytes(static_cast<double>(plan_.bytes())), plan_.text(),
                      human_bytes(static_cast<double>(free_bytes)),
                      what_fits(config_, layout_.decoder, weights_, free_bytes));
  }
  for (kernels::DeviceBuffer* buffer :
       {&state_.masters, &state_.gradients, &state_.first_moments, &state_.second_moments}) {
    ASSIGN_OR_RETURN(*buffer, device_.allocate(count * kF32));
    RETURN_IF_ERROR(buffer->fill_zero());
  }
  ASSIGN_OR_RETURN(state_.copies, device_.allocate(count * kBf16));
  RETURN_IF_ERROR(state_.copies.fill_zero());
  RETURN_IF_ERROR(update_.allocate(device_));
  ASSIGN_OR_RETURN(network_, DeviceNetwork::make(device_, layout_.decoder, layers_, weights_, plan_, state_));
  return device_.synchronize();
}

Result<void> DeviceTrainer::put(int weight, std::span<const float> values) {
  return state_.masters.upload(values.data(), std::ssize(values) * kF32, weights_.offset(weight) * kF32);
}

// Matrices are drawn at the same time, as many as there are threads.
void DeviceTrainer::initialize(uint64_t seed) {
  const InitialWeights initial(local_, seed);
  const std::vector<FlatWeight>& flat = weights_.flat();
  const auto at_once = static_cast<size_t>(pool_.size());
  for (size_t first = 0; first < flat.size(); first += at_once) {
    const size_t last = std::min(first + at_once, flat.size());
    std::vector<std::vector<float>> drawn(last - first);
    pool_.parallel_for(std::ssize(drawn), 1, [&](int64_t begin, int64_t end) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
        drawn[i] = initial.draw(flat[first + i]);
    });
    for (size_t i = first; i < last; ++i) put(static_cast<int>(i), drawn[i - first]).value_or_throw("device");
  }
  make_copies();
  device_.synchronize().value_or_throw("device");
}

void DeviceTrainer::make_copies() {
  device_.kernels().narrow(device_.stream(), state_.copies.as<kernels::bf16>(), state_.masters.as<float>(),
                           weights_.count());
}

Result<void> DeviceTrainer::load(const model::WeightSource& source) {
  for (size_t i = 0; i < weights_.flat().size(); ++i) {
    ASSIGN_OR_RETURN(const model::Tensor tensor, find_tensor(source, weights_.flat()[i]));
    RETURN_IF_ERROR(put(static_cast<int>(i), model::to_f32(tensor)));
  }
  make_copies();
  return device_.synchronize();
}

Result<StepResult> DeviceTrainer::step(const data::Batch& batch, const Links& given) {
  Links links = given;
  RETURN_IF_ERROR(start_gradients(batch, links));
  RETURN_IF_ERROR(sum_gradients(links));
  std::array<double, 1> targets{static_cast<double>(targets_of(batch))};
  links.sum(links.all, targets);
  RETURN_IF_ERROR(links.failed);
  const int64_t positions = config_.batch.sequences * batch.length;
  StepResult result{.lr = next_lr(),
                    .tokens = batch.counts.empty() ? static_cast<int64_t>(targets[0]) : positions};
  RETURN_IF_ERROR(update_.start_norm(state_, optimizer_step(result.lr), targets[0]));
  // What the guard decides by its history, the host must know first.
  const bool decides = config_.guard.on_spike != GuardAction::kIgnore;
  if (!decides) update_.start(state_);
  const TracedSpan span(links.tracer, "optimizer");
  ASSIGN_OR_RETURN(result.gradient_norm, update_.norm());
  std::array<double, 1> loss{};
  ASSIGN_OR_RETURN(loss[0], network_->take_losses());
  links.sum(links.all, loss);
  RETURN_IF_ERROR(links.failed);
  result.loss = loss[0] / targets[0];
  result.anomaly = find_anomaly(config_.guard, guard_, result.loss, result.gradient_norm);
  result.skipped = result.anomaly != Anomaly::kNone;
  if (!decides && result.skipped == std::isfinite(result.gradient_norm)) {
    return make_error(ErrorCode::kCorrupt,
                      "step {}: the loss is {} and the gradient's norm {}: this device computes wrongly",
                      next_step_ + 1, result.loss, result.gradient_norm);
  }
  if (!result.skipped) {
    if (decides) update_.start(state_);
    ++updates_;
    accept(config_.guard, guard_, result.loss, result.gradient_norm);
  }
  end_step(result);
  return result;
}

OptimizerStep DeviceTrainer::optimizer_step(double lr) const {
  return {.lr = lr, .update = updates_, .betas = scheduled_betas(config_.schedule, updates_)};
}

Result<void> DeviceTrainer::start_gradients(const data::Batch& batch, Links& links) {
  const TracedSpan span(links.tracer, "start_gradients");
  network_->forget();  // of a step that failed
  RETURN_IF_ERROR(state_.gradients.fill_zero());
  const int64_t micro = plan_.batch().sequences;
  for (int64_t first = 0; first < batch.sequences; first += micro)
    RETURN_IF_ERROR(network_->train(part_of(batch, first, std::min(micro, batch.sequences - first))));
  return {};
}

// In pieces of a bucket, so that no rank holds all of them in main memory.
Result<void> DeviceTrainer::sum_gradients(Links& links) {
  if (Links::size(links.replicas) == 1) return {};
  const TracedSpan span(links.tracer, "sum_gradients");
  const int64_t piece = std::min(config_.mesh.bucket_values, weights_.count());
  if (exchanged_.bytes() == 0) {
    ASSIGN_OR_RETURN(exchanged_, device_.allocate(piece * kF32, kernels::MemoryKind::kHost));
  }
  for (int64_t begin = 0; begin < weights_.count(); begin += piece) {
    const int64_t count = std::min(piece, weights_.count() - begin);
    RETURN_IF_ERROR(exchanged_.copy(state_.gradients, count * kF32, 0, begin * kF32));
    RETURN_IF_ERROR(device_.synchronize());
    links.all_reduce(links.replicas, {exchanged_.as<float>(), static_cast<size_t>(count)});
    RETURN_IF_ERROR(links.failed);
    RETURN_IF_ERROR(state_.gradients.copy(exchanged_, count * kF32, begin * kF32));
    RETURN_IF_ERROR(device_.synchronize());
  }
  return {};
}

Result<double> DeviceTrainer::evaluate(const data::Sampler& sampler, int64_t samples, const Links& given) {
  Links links = given;
  const int64_t rank = links.batch_rank(), world = links.batch_ranks();
  samples = std::min(samples, sampler.samples_per_epoch());
  std::array<double, 2> sums{};
  network_->forget();  // of a step that failed
  const int64_t end = samples * (rank + 1) / world;
  for (int64_t sample = samples * rank / world; sample < end;) {
    std::vector<int64_t> read(static_cast<size_t>(std::min(plan_.batch().sequences, end - sample)));
    for (int64_t& s : read) s = sample++;
    ASSIGN_OR_RETURN(const data::Batch batch, sampler.read(read));
    ASSIGN_OR_RETURN(const double loss, network_->evaluate(part_of(batch, 0, batch.sequences)));
    sums[0] += loss;
    sums[1] += static_cast<double>(targets_of(batch));
  }
  links.sum(links.all, sums);
  RETURN_IF_ERROR(links.failed);
  return validation_loss(sums[0] / sums[1]);
}

void DeviceTrainer::take_snapshot(const std::vector<FlatWeight>& held, int64_t count, TrainerSnapshot& into) {
  hand_over(into);
  make_room(config_.optimizer, held, count, into);
  const StateLayout state = state_layout(config_.optimizer, held);
  const std::array<const kernels::DeviceBuffer*, 2> moments = {&state_.first_moments, &state_.second_moments};
  for (size_t p = 0; p < held.size(); ++p) {
    const FlatWeight& piece = held[p];
    const int64_t bytes = piece.count * kF32;
    const int64_t from = (weights_.offset(static_cast<int>(piece.index)) + piece.first) * kF32;
    state_.masters.download(into.weights.data() + piece.offset, bytes, from).value_or_throw("device");
    for (size_t s = 0; s < moments.size(); ++s) {
      const StateSlot& slot = state.slots[p][s];
      moments[s]
          ->download(into.state[slot.buffer].bytes.data() + slot.offset * kF32, bytes, from)
          .value_or_throw("device");
    }
  }
}

void DeviceTrainer::snapshot(TrainerSnapshot& into) {
  take_snapshot(shares_.held(), shares_.held_count(), into);
}

void DeviceTrainer::snapshot(const Shares& shares, TrainerSnapshot& into) {
  take_snapshot(shares.share(), shares.share_count(), into);
}

// By way of main memory, so that what is refused changes nothing.
template <typename Fill>
Result<void> DeviceTrainer::take_values(const Fill& fill) {
  TrainerSnapshot values;
  make_room(config_.optimizer, shares_.held(), shares_.held_count(), values);
  std::vector<StateBuffer> buffers;
  for (TrainerSnapshot::Buffer& buffer : values.state) buffers.push_back({buffer.name, buffer.bytes});
  RETURN_IF_ERROR(fill(std::span(values.weights), buffers));
  const StateLayout state = state_layout(config_.optimizer, shares_.held());
  const std::array<kernels::DeviceBuffer*, 2> moments = {&state_.first_moments, &state_.second_moments};
  for (size_t i = 0; i < shares_.held().size(); ++i) {
    const FlatWeight& weight = shares_.held()[i];
    const int index = static_cast<int>(weight.index);
    RETURN_IF_ERROR(
        put(index, std::span(values.weights)
                       .subspan(static_cast<size_t>(weight.offset), static_cast<size_t>(weight.count))));
    for (size_t s = 0; s < moments.size(); ++s) {
      const StateSlot& slot = state.slots[i][s];
      RETURN_IF_ERROR(moments[s]->upload(buffers[slot.buffer].bytes.data() + slot.offset * kF32,
                                         weight.count * kF32, weights_.offset(index) * kF32));
    }
  }
  make_copies();
  return device_.synchronize();
}

Result<void> DeviceTrainer::restore(std::string_view bytes) {
  ASSIGN_OR_RETURN(const TrainerStateView state, read_trainer_state(bytes));
  RETURN_IF_ERROR(take_values([&](std::span<float> weights, const std::vector<StateBuffer>& buffers) {
    const auto put_all = [&](std::string_view flat) {
      std::memcpy(weights.data(), flat.data(), flat.size());
    };
    return take_all(state, std::ssize(weights), put_all, buffers);
  }));
  take_over_rest(state);
  return {};
}

Result<void> DeviceTrainer::restore_whole(WholeState& whole) {
  RETURN_IF_ERROR(take_values([&](std::span<float> weights, const std::vector<StateBuffer>& buffers) {
    return take_part(config_.optimizer, local_, shares_.held(), whole, weights, buffers);
  }));
  take_over_rest(whole.about());
  return {};
}

std::string DeviceTrainer::sha256() {
  return snapshot().sha256();
}

}  // namespace flywheel::train
