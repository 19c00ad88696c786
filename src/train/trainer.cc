#include "train/trainer.h"

#include <array>
#include <cmath>
#include <cstring>

#include "base/hash.h"
#include "base/log.h"

namespace flywheel::train {
namespace {

using kernels::DType;

constexpr char kMagic[8] = {'F', 'L', 'Y', 'T', 'R', 'S', 'T', '1'};

struct StateHeader {
  char magic[8];
  uint64_t seed;
  int64_t next_step;
  int64_t count;  // f32 values in each of the three buffers
  uint32_t crc;   // CRC32C of the header up to here, then of the buffers
  uint32_t zero;
};
static_assert(sizeof(StateHeader) == 40);

std::string_view as_bytes(std::span<const float> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

}  // namespace

std::string TrainerSnapshot::header() const {
  StateHeader header{.seed = seed, .next_step = next_step, .count = std::ssize(weights)};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.crc = crc32c({reinterpret_cast<const char*>(&header), offsetof(StateHeader, crc)});
  for (const std::string_view buffer : buffers()) header.crc = crc32c(buffer, header.crc);
  return {reinterpret_cast<const char*>(&header), sizeof header};
}

std::array<std::string_view, 3> TrainerSnapshot::buffers() const {
  return {as_bytes(weights), as_bytes(first_moments), as_bytes(second_moments)};
}

std::string TrainerSnapshot::sha256() const {
  Sha256 sha;
  for (const std::string_view buffer : buffers()) sha.update(buffer);
  return sha.hex();
}

Trainer::Trainer(const TrainConfig& config, const Layout& layout, const MeshPlace& place, ThreadPool& pool)
    : config_(config),
      layout_(layout),
      place_(place),
      local_(layout.local(place_)),
      parameters_(local_, config.precision == Precision::kBF16 ? DType::kBF16 : DType::kF32, pool),
      network_(local_, parameters_, links_,
               {.recompute = config.recompute, .splits_backward = layout.schedule.splits_backward}, pool),
      pipeline_(network_, layout, static_cast<int>(place_.pipeline), links_) {}

// Whether this rank's copy of a weight is the one that the gradient's norm counts.
bool Trainer::counts(const WeightShard& shard) const {
  if (shard.copies != WeightShard::Copies::kSplit && place_.tensor > 0) return false;
  return !shard.shared_by_stages || place_.pipeline == 0;
}

void Trainer::sum_gradients() {
  const auto gradients_of = [&](const auto& chosen) {
    std::vector<std::span<float>> found;
    for (size_t i = 0; i < local_.shards.size(); ++i) {
      if (chosen(local_.shards[i])) found.push_back(parameters_.gradient(static_cast<int>(i)));
    }
    return found;
  };
  if (links_.tensor != nullptr) {  // norms and biases: few values, in one message
    std::vector<float> parts;
    const auto partial =
        gradients_of([](const WeightShard& s) { return s.copies == WeightShard::Copies::kPartial; });
    for (const auto& gradient : partial) parts.insert(parts.end(), gradient.begin(), gradient.end());
    if (!parts.empty()) links_.all_reduce(links_.tensor, parts);
    auto at = parts.begin();
    for (const auto& gradient : partial) {
      std::copy_n(at, gradient.size(), gradient.begin());
      at += std::ssize(gradient);
    }
  }
  for (const auto& gradient : gradients_of([](const WeightShard& s) { return s.shared_by_stages; })) {
    const int last = static_cast<int>(Links::size(links_.pipeline)) - 1;
    const int other = place_.pipeline == 0 ? last : 0;
    std::vector<float> theirs(gradient.size());
    if (!links_.failed.ok()) return;
    const runtime::Pending sent = links_.pipeline->start(
        runtime::Send{.in = runtime::of(std::span<const float>(gradient)), .to = other}, links_.deadline);
    links_.run(links_.pipeline, runtime::Recv{.out = runtime::of(std::span<float>(theirs)), .from = other});
    const Result<void> done = sent.wait();
    if (links_.failed.ok()) links_.failed = done;
    for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += theirs[i];
  }
  links_.all_reduce(links_.replicas, parameters_.gradients());
}

Result<StepResult> Trainer::step(const data::Batch& batch, const Links& links) {
  links_ = links;
  parameters_.clear_gradients();
  const int64_t row = batch.length + 1;
  const int64_t micro = config_.batch.micro_sequences > 0 ? config_.batch.micro_sequences : batch.sequences;
  std::vector<Sequences> microbatches;
  for (int64_t first = 0; first < batch.sequences; first += micro) {
    const int64_t count = std::min(micro, batch.sequences - first);
    microbatches.push_back(
        {count, batch.length,
         std::span(batch.tokens)
             .subspan(static_cast<size_t>(first * row), static_cast<size_t>(count * row))});
  }
  const double loss = pipeline_.train(microbatches);
  sum_gradients();
  RETURN_IF_ERROR(links_.failed);
  // Each number once: losses come from the ranks of the last stage, squares from one copy of each weight.
  const bool tells = pipeline_.has_last_stage() && place_.tensor == 0;
  double squares = 0;
  if (Links::rank(links_.replicas) == 0) {
    squares = layout_.splits_model()
                  ? parameters_.squared_gradients([&](const WeightShard& s) { return counts(s); })
                  : parameters_.squared_gradients();
  }
  std::array<double, 3> sums = {tells ? loss : 0,
                                tells ? static_cast<double>(batch.sequences * batch.length) : 0, squares};
  links_.sum(links_.all, sums);
  RETURN_IF_ERROR(links_.failed);
  StepResult result{.loss = sums[0] / sums[1],
                    .gradient_norm = std::sqrt(sums[2]) / sums[1],
                    .lr = learning_rate(config_.optimizer, next_step_, config_.steps),
                    .tokens = static_cast<int64_t>(sums[1])};
  if (!std::isfinite(result.loss)) {
    return make_error(ErrorCode::kInvalid,
                      "the loss of step {} is {}; lower optimizer.lr or lengthen the warm-up", next_step_,
                      result.loss);
  }
  if (!std::isfinite(result.gradient_norm)) {
    return make_error(ErrorCode::kInvalid,
                      "the gradient of step {} is not finite; lower optimizer.lr or lengthen the warm-up",
                      next_step_);
  }
  const double clip = config_.optimizer.clip_norm;
  const double shrink = clip > 0 && result.gradient_norm > clip ? clip / result.gradient_norm : 1.0;
  parameters_.update({.lr = static_cast<float>(result.lr),
                      .beta1 = static_cast<float>(config_.optimizer.betas[0]),
                      .beta2 = static_cast<float>(config_.optimizer.betas[1]),
                      .epsilon = static_cast<float>(config_.optimizer.epsilon),
                      .weight_decay = static_cast<float>(config_.optimizer.weight_decay),
                      .t = next_step_ + 1,
                      .gradient_scale = static_cast<float>(shrink / sums[1])});
  ++next_step_;
  return result;
}

Result<double> Trainer::evaluate(const data::Sampler& sampler, int64_t samples, const Links& links) {
  links_ = links;
  const int64_t rank = Links::rank(links.replicas), world = Links::size(links.replicas);
  const int64_t length = config_.batch.length;
  samples = std::min(samples, sampler.samples_per_epoch());
  std::vector<int32_t> tokens(static_cast<size_t>(length + 1));
  std::array<double, 2> sums{};
  for (int64_t sample = samples * rank / world; sample < samples * (rank + 1) / world; ++sample) {
    RETURN_IF_ERROR(sampler.read_sample(sample, tokens));
    const double loss = pipeline_.evaluate({1, length, tokens});
    if (!pipeline_.has_last_stage() || place_.tensor > 0) continue;
    sums[0] += loss;
    sums[1] += static_cast<double>(length);
  }
  links_.sum(links_.all, sums);
  RETURN_IF_ERROR(links_.failed);
  const double loss = sums[0] / sums[1];
  if (std::isfinite(loss)) return loss;
  return make_error(ErrorCode::kInvalid,
                    "the validation loss after {} steps is {}; lower optimizer.lr or lengthen the warm-up",
                    next_step_, loss);
}

TrainerSnapshot Trainer::snapshot() {
  TrainerSnapshot made;
  snapshot(made);
  return made;
}

void Trainer::snapshot(TrainerSnapshot& into) {
  const auto copy = [](std::vector<float>& to, std::span<float> from) {
    to.assign(from.begin(), from.end());
  };
  into.next_step = next_step_;
  into.seed = config_.seed;
  copy(into.weights, parameters_.weights());
  copy(into.first_moments, parameters_.first_moments());
  copy(into.second_moments, parameters_.second_moments());
}

Result<TrainerSnapshot> Trainer::whole_snapshot(const Links& links) {
  if (Links::rank(links.replicas) > 0) return TrainerSnapshot{};
  if (!layout_.splits_model()) return snapshot();
  links_ = links;
  if (Links::rank(links.all) > 0) {
    for (const std::span<float> buffer :
         {parameters_.weights(), parameters_.first_moments(), parameters_.second_moments()}) {
      links_.run(links_.all, runtime::Send{.in = runtime::of(buffer), .to = 0});
    }
    RETURN_IF_ERROR(links_.failed);
    return TrainerSnapshot{};
  }
  TrainerSnapshot own = snapshot();
  TrainerSnapshot whole{.next_step = own.next_step, .seed = own.seed};
  const std::array buffers = {&TrainerSnapshot::weights, &TrainerSnapshot::first_moments,
                              &TrainerSnapshot::second_moments};
  const auto size = static_cast<size_t>(flat_offsets(layout_.decoder.weights).back());
  for (const auto buffer : buffers) (whole.*buffer).assign(size, 0.0f);
  for (const int holder : layout_.holders()) {
    const LocalDecoder local = layout_.local(layout_.place(holder));
    const auto count = static_cast<size_t>(flat_offsets(local.weights).back());
    for (const auto buffer : buffers) {
      if (holder > 0) {
        (own.*buffer).assign(count, 0.0f);
        links_.run(links_.all,
                   runtime::Recv{.out = runtime::of(std::span<float>(own.*buffer)), .from = holder});
      }
      to_whole(local, own.*buffer, whole.*buffer);
    }
  }
  RETURN_IF_ERROR(links_.failed);
  return whole;
}

namespace {

// The three buffers of a trainer's state of `count` values each.
struct StateView {
  int64_t next_step = 0;
  std::array<std::span<const float>, 3> buffers;
};

Result<StateView> read_state(std::string_view bytes, int64_t count) {
  StateHeader header;
  if (bytes.size() < sizeof header) {
    return make_error(ErrorCode::kCorrupt, "trainer state of {} bytes: it was cut short", bytes.size());
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    return make_error(ErrorCode::kInvalid, "not a trainer state of version 1");
  }
  if (header.count != count) {
    return make_error(ErrorCode::kInvalid, "trainer state of {} values, this model has {}", header.count,
                      count);
  }
  const size_t buffer_bytes = static_cast<size_t>(count) * sizeof(float);
  if (bytes.size() != sizeof header + 3 * buffer_bytes) {
    return make_error(ErrorCode::kCorrupt, "trainer state of {} bytes, should be {}", bytes.size(),
                      sizeof header + 3 * buffer_bytes);
  }
  const std::string_view body = bytes.substr(sizeof header);
  if (crc32c(body, crc32c(bytes.substr(0, offsetof(StateHeader, crc)))) != header.crc) {
    return make_error(ErrorCode::kCorrupt, "trainer state: its checksum does not match");
  }
  StateView view{.next_step = header.next_step};
  for (size_t i = 0; i < view.buffers.size(); ++i) {
    view.buffers[i] = {reinterpret_cast<const float*>(body.data() + i * buffer_bytes),
                       static_cast<size_t>(count)};
  }
  return view;
}

}  // namespace

Result<void> Trainer::restore(std::string_view bytes) {
  const std::array own = {parameters_.weights(), parameters_.first_moments(), parameters_.second_moments()};
  ASSIGN_OR_RETURN(const StateView state, read_state(bytes, std::ssize(own[0])));
  for (size_t i = 0; i < own.size(); ++i)
    std::memcpy(own[i].data(), state.buffers[i].data(), own[i].size_bytes());
  next_step_ = state.next_step;
  parameters_.pack();
  return {};
}

Result<void> Trainer::restore_whole(std::string_view bytes) {
  const std::array own = {parameters_.weights(), parameters_.first_moments(), parameters_.second_moments()};
  ASSIGN_OR_RETURN(const StateView state, read_state(bytes, flat_offsets(layout_.decoder.weights).back()));
  for (size_t i = 0; i < own.size(); ++i) from_whole(local_, state.buffers[i], own[i]);
  next_step_ = state.next_step;
  parameters_.pack();
  return {};
}

}  // namespace flywheel::train
