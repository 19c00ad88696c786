#include "train/trainer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "kernels/elementwise.h"
#include "train/rounding.h"

namespace flywheel::train {

Trainer::Trainer(const TrainConfig& config, const Layout& layout, const MeshPlace& place, ThreadPool& pool)
    : AnyTrainer(config),
      layout_(layout),
      place_(place),
      local_(layout.local(place_)),
      pool_(pool),
      parameters_(local_, compute_dtype(config.precision), pool, rounding_of(config), layout.share_of(place_),
                  config.weights_in(), config.optimizer.masters),
      optimizer_(config.optimizer, parameters_.shares().held(), config.offload, config.weights_in(),
                 cut_weights(config.optimizer, local_, parameters_.shares())),
      mover_(local_, parameters_, links_,
             {.overlap = config.mesh.overlap, .recompute = config.recompute, .pipeline = place_.pipeline}),
      network_(Network::make(local_, parameters_, links_,
                             {.recompute = config.recompute,
                              .splits_backward = layout.schedule.splits_backward,
                              .router = config.router,
                              .seed = config.seed,
                              .mover = &mover_},
                             pool)),
      pipeline_(*network_, layout, static_cast<int>(place_.pipeline), links_) {
  CHECK(config.recompute != Recompute::kAuto, "a trainer is told what to compute again");
  if (config.precision == Precision::kFP16) loss_scale_ = first_loss_scale(config.loss_scale);
  if (optimizer_.weights_file() != nullptr) {
    filed_.emplace(*optimizer_.weights_file(), parameters_.shares());
    parameters_.keep_in(*filed_);
  }
}

// Whether this rank's copy of a weight is the one that the gradient's norm counts.
bool Trainer::counts(const WeightShard& shard) const {
  if (shard.copies != WeightShard::Copies::kSplit && place_.tensor > 0) return false;
  return !shard.shared_by_stages || place_.pipeline == 0;
}

// Of the sums over the data axis every rank squares its share, at every stage: so the norm has the same bits.
// At stage 0 the rank is the communicator's, as the state of any replica may have become this one's.
double Trainer::squared_share() {
  const Shares& shares = parameters_.shares();
  double sum = 0;
  for (const Bucket& bucket : shares.buckets()) {
    const int64_t begin = bucket.begin + Links::rank(links_.sharing(bucket.dealt)) * bucket.part;
    const int64_t at = shares.stage() <= 1 ? begin : bucket.share_begin;
    for (const FlatWeight& piece : slice(shares.weights(), begin, begin + bucket.part)) {
      if (!counts(local_.shards[piece.index])) continue;
      sum += kernels::sum_of_squares(parameters_.gradients().data() + at + piece.offset, piece.count, pool_);
    }
  }
  return sum;
}

// What the rank holds of gradients or weights, but for what ZeRO has other ranks sum up.
Result<void> Trainer::digest(Digested what) {
  const bool shared = parameters_.shares().partitioned();
  std::vector<float> room;
  for (const Bucket& bucket : parameters_.shares().buckets()) {
    if (what == Digested::kWeights && filed_.has_value()) {
      const auto reading = parameters_.start_read(bucket);
      ASSIGN_OR_RETURN(const std::span<const float> own, reading->wait());
      digests_.add(what, bucket.dealt, own);
    } else if (what == Digested::kWeights) {
      digests_.add(what, bucket.dealt,
                   shared ? parameters_.weights(bucket.share_begin, bucket.part, room)
                          : parameters_.weights(bucket.begin, bucket.size(), room));
    } else {
      digests_.add(what, bucket.dealt,
                   shared ? parameters_.own_gradients(bucket) : parameters_.bucket_gradients(bucket));
    }
  }
  return {};
}

Result<StepResult> Trainer::step(const data::Batch& batch, const Links& links) {
  links_ = links;
  const int64_t micro = config_.batch.micro_sequences > 0 ? config_.batch.micro_sequences : batch.sequences;
  std::vector<Sequences> microbatches;
  for (int64_t first = 0; first < batch.sequences; first += micro) {
    microbatches.push_back(part_of(batch, first, std::min(micro, batch.sequences - first)));
    microbatches.back().step = next_step_;
    microbatches.back().first = config_.batch.sequences * links.batch_rank() / links.batch_ranks() + first;
  }
  const float scale = gradient_scale();
  const bool compares = config_.compares_after(next_step_ + 1);
  digests_ = {};
  mover_.begin(std::ssize(microbatches), compares ? &digests_ : nullptr);
  network_->take_routing();  // of a step that failed
  const double loss = pipeline_.train(microbatches, scale);
  mover_.finish();
  RETURN_IF_ERROR(links_.failed);
  if (damage_for_tests != nullptr)
    damage_for_tests(static_cast<int>(Links::rank(links_.all)), next_step_ + 1, parameters_.gradients());
  if (compares) RETURN_IF_ERROR(digest(Digested::kGradients));
  // Each number once: losses come from the ranks of the last stage, targets from the first of those that
  // share a sequence (of packed samples they have unequal numbers), squares from one copy of each weight.
  const bool tells = pipeline_.has_last_stage() && place_.tensor == 0;
  const int64_t tokens = Links::rank(links_.context) == 0 ? targets_of(batch) : 0;
  double squares = 0;
  if (Links::rank(links_.copies) == 0) {
    const TracedSpan span(links_.tracer, "gradient_norm");
    squares = squared_share();
  }
  std::vector<double> sums = {tells ? loss : 0, tells ? static_cast<double>(tokens) : 0, squares};
  Routing routing = network_->take_routing();  // of whole sequences
  if (place_.tensor > 0 || Links::rank(links_.context) > 0) routing.clear();
  sums.insert(sums.end(), routing.values().begin(), routing.values().end());
  links_.sum(links_.all, sums);
  RETURN_IF_ERROR(links_.failed);
  std::copy(sums.begin() + 3, sums.end(), routing.values().begin());
  const OptimizerConfig& optimizer = config_.optimizer;
  const double times = sums[1] * static_cast<double>(scale);  // what the mean's gradient is multiplied by
  // Of packed samples every position is computed and some count; loss and gradient are of those that do.
  const int64_t positions = config_.batch.sequences * batch.length;
  StepResult result{.loss = sums[0] / sums[1],
                    .gradient_norm = std::sqrt(sums[2]) / times,
                    .lr = next_lr(),
                    .tokens = batch.counts.empty() ? static_cast<int64_t>(sums[1]) : positions,
                    .loss_scale = loss_scale_.value_or(LossScale{}).scale};
  if (!routing.empty()) result.router = routing.report(result.tokens);
  const bool overflow = loss_scale_.has_value() && !std::isfinite(result.gradient_norm);
  if (loss_scale_.has_value()) {
    ASSIGN_OR_RETURN(loss_scale_, next_loss_scale(config_.loss_scale, *loss_scale_, overflow));
  }
  if (overflow) result.gradient_norm = 0;
  result.anomaly = find_anomaly(config_.guard, guard_, result.loss, result.gradient_norm);
  result.skipped = overflow || result.anomaly != Anomaly::kNone;
  if (!result.skipped) {
    const TracedSpan span(links_.tracer, "optimizer");
    const bool balances = config_.router.bias_rate > 0;
    const auto balance = [&](size_t held, int64_t first, std::span<float> weights) {
      if (balances) balance_experts(routing, held, first, weights);
    };
    optimizer_.step(
        parameters_.held_weights(), [&](size_t i) { return parameters_.held_gradient(i); },
        {.lr = result.lr,
         .update = updates_,
         .gradient_scale = clip_factor(result.gradient_norm, optimizer) / times,
         .betas = scheduled_betas(config_.schedule, updates_),
         .sum = [&](std::span<float> values) { links_.all_reduce(links_.tensor, values); },
         .links = &links_,
         .seed = config_.seed,
         .then = balance},
        pool_);
    RETURN_IF_ERROR(links_.failed);
    RETURN_IF_ERROR(optimizer_.failed());
    parameters_.pack();
    ++updates_;
    accept(config_.guard, guard_, result.loss, result.gradient_norm);
  }
  if (compares) {
    RETURN_IF_ERROR(digest(Digested::kWeights));
    RETURN_IF_ERROR(compare_digests(layout_, digests_, next_step_ + 1, links_));
  }
  end_step(result);
  return result;
}

// Every rank that holds a piece of a bias moves it, by the same loads.
void Trainer::balance_experts(Routing& routing, size_t held, int64_t first, std::span<float> weights) const {
  const FlatWeight& piece = parameters_.shares().held()[held];
  if (local_.weights[piece.index].kind != model::WeightKind::kChoiceBias) return;
  for (const LocalStep& step : local_.steps) {
    if (step.op != model::Op::kRoute || step.bias != static_cast<int>(piece.index)) continue;
    const std::span<const double> load = routing.layer(step.layer).load;
    const double mean = std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(load.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      const double less = mean - load[static_cast<size_t>(piece.first + first) + i];
      const double rate = less > 0 ? config_.router.bias_rate : less < 0 ? -config_.router.bias_rate : 0;
      weights[i] += static_cast<float>(rate);
    }
  }
}

// What the loss of each token is multiplied by. In fp16: the loss scale over the tokens of a replica, so
// that the scale means what it does where losses are means.
float Trainer::gradient_scale() const {
  if (!loss_scale_.has_value()) return 1;
  const int64_t tokens = config_.batch.sequences * config_.batch.length;
  const auto replicas = static_cast<double>(Links::size(links_.replicas));
  return static_cast<float>(loss_scale_->scale * replicas / static_cast<double>(tokens));
}

Result<double> Trainer::evaluate(const data::Sampler& sampler, int64_t samples, const Links& links) {
  links_ = links;
  const int64_t rank = links.batch_rank(), world = links.batch_ranks();
  samples = std::min(samples, sampler.samples_per_epoch());
  std::array<double, 2> sums{};
  mover_.begin_evaluation();
  const int64_t end = samples * (rank + 1) / world;
  int64_t last = end;
  // All take part in all gathers and exchanges of tokens: who has less looks at a sample once more.
  if (layout_.share.stage == 3 || links.expert != nullptr) {
    last = samples * rank / world + (samples + world - 1) / world;
  }
  for (int64_t sample = samples * rank / world; sample < last; ++sample) {
    const int64_t read = std::min(sample, samples - 1);
    ASSIGN_OR_RETURN(const data::Batch batch, sampler.read({&read, 1}));
    const double loss = pipeline_.evaluate(part_of(batch, 0, 1));
    if (!pipeline_.has_last_stage() || place_.tensor > 0 || sample >= end) continue;
    sums[0] += loss;
    if (Links::rank(links.context) == 0) sums[1] += static_cast<double>(targets_of(batch));
  }
  links_.sum(links_.all, sums);
  RETURN_IF_ERROR(links_.failed);
  return validation_loss(sums[0] / sums[1]);
}

void Trainer::snapshot(TrainerSnapshot& into) {
  const std::vector<std::span<const float>> weights = weight_pieces(into.weights);
  const std::vector<StateBuffer> state = optimizer_.state();
  hand_over(into);
  if (filed_) {
    into.weights = {};
    into.mapped_weights = weights;
    into.weights_owner = filed_->hold();
  } else if (weights[0].data() != into.weights.data()) {
    into.weights.assign(weights[0].begin(), weights[0].end());
  }
  into.state.resize(state.size());
  for (size_t i = 0; i < state.size(); ++i) {
    into.state[i].name = state[i].name;
    into.state[i].owner = optimizer_.hold();
    if (into.state[i].owner != nullptr) {
      into.state[i].mapped = state[i].bytes;
    } else {
      into.state[i].bytes.assign(state[i].bytes.begin(), state[i].bytes.end());
    }
  }
}

void Trainer::snapshot(const Shares& shares, TrainerSnapshot& into) {
  const HeldWeights& weights = parameters_.held_weights();
  const std::vector<StateBuffer> state = optimizer_.state();
  CHECK(weights.count() == shares.count(), "{} weights here, {} to share", weights.count(), shares.count());
  hand_over(into);
  // What lies between the pieces is zeros, and never written.
  make_room(config_.optimizer, shares.share(), shares.share_count(), into);
  for (const Bucket& bucket : shares.buckets()) {
    weights.read(bucket.begin + bucket.rank * bucket.part,
                 std::span(into.weights)
                     .subspan(static_cast<size_t>(bucket.share_begin), static_cast<size_t>(bucket.part)));
  }
  const StateLayout all = state_layout(config_.optimizer, shares.weights());
  const StateLayout own = state_layout(config_.optimizer, shares.share());
  for (size_t p = 0; p < shares.share().size(); ++p) {
    const FlatWeight& piece = shares.share()[p];
    for (size_t s = 0; s < own.slots[p].size(); ++s) {
      const StateSlot &to = own.slots[p][s], &from = all.slots[piece.index][s];
      const int64_t bytes = own.buffers[to.buffer].value_bytes;
      const int64_t first = to.weights_a_value == 0 ? 0 : piece.first / to.weights_a_value;
      std::memcpy(into.state[to.buffer].bytes.data() + to.offset * bytes,
                  state[from.buffer].bytes.data() + (from.offset + first) * bytes,
                  static_cast<size_t>(to.count * bytes));
    }
  }
}

std::vector<std::span<const float>> Trainer::weight_pieces(std::vector<float>& room) {
  if (filed_) return filed_->read().value_or_throw();
  return {parameters_.weights(0, parameters_.shares().held_count(), room)};
}

const std::vector<FlatWeight>& Trainer::places() const {
  return filed_ ? filed_->places() : parameters_.shares().held();
}

void Trainer::take_over(const TrainerStateView& state) {
  take_over_rest(state);
  parameters_.pack();
}

// `fill(weights, state)` puts them where it is told: the weights at places().
template <typename Fill>
Result<void> Trainer::take_values(const Fill& fill) {
  const std::vector<StateBuffer> state = optimizer_.fill();
  HeldWeights& held = parameters_.held_weights();
  if (held.masters() == Masters::kNone) {
    std::vector<float> weights(static_cast<size_t>(held.count()));
    RETURN_IF_ERROR(fill(std::span(weights), state));
    held.write(0, weights);
  } else {
    RETURN_IF_ERROR(fill(filed_ ? optimizer_.filled_weights() : parameters_.weights(), state));
  }
  optimizer_.take_filled();
  return {};
}

Result<void> Trainer::restore(std::string_view bytes) {
  ASSIGN_OR_RETURN(const TrainerStateView state, read_trainer_state(bytes));
  RETURN_IF_ERROR(take_values([&](std::span<float> weights, const std::vector<StateBuffer>& buffers) {
    const auto put = [&](std::string_view flat) {
      filed_ ? filed_->put(flat, weights) : (void)std::memcpy(weights.data(), flat.data(), flat.size());
    };
    return take_all(state, parameters_.shares().held_count(), put, buffers);
  }));
  take_over(state);
  return {};
}

Result<void> Trainer::restore_whole(std::string_view bytes) {
  ASSIGN_OR_RETURN(const TrainerStateView state, read_trainer_state(bytes));
  RETURN_IF_ERROR(take_values([&](std::span<float> weights, const std::vector<StateBuffer>& buffers) {
    return take_part(config_.optimizer, local_, places(), state, weights, buffers);
  }));
  take_over(state);
  return {};
}

Result<void> Trainer::restore_whole(WholeState& whole) {
  RETURN_IF_ERROR(take_values([&](std::span<float> weights, const std::vector<StateBuffer>& buffers) {
    return take_part(config_.optimizer, local_, places(), whole, weights, buffers);
  }));
  take_over(whole.about());
  return {};
}

std::string Trainer::sha256() {
  std::vector<std::span<const std::byte>> state;
  for (const StateBuffer& buffer : optimizer_.state()) state.emplace_back(buffer.bytes);
  std::vector<float> room;
  return trainer_sha256(weight_pieces(room), state, updates_, loss_scale_);
}

}  // namespace flywheel::train
