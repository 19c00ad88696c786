#include "train/trainer.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "base/hash.h"
#include "base/log.h"

namespace flywheel::train {
namespace {

using kernels::DType;
using runtime::Communicator;

// Sum over the ranks of each of `values`, in f64 and rank order.
Result<std::vector<double>> sum_over_ranks(std::vector<double> values, Communicator* communicator,
                                           Deadline deadline) {
  if (communicator == nullptr || communicator->size() == 1) return values;
  std::vector<int64_t> mine, all(values.size() * static_cast<size_t>(communicator->size()));
  for (const double v : values) mine.push_back(std::bit_cast<int64_t>(v));
  RETURN_IF_ERROR(communicator->run(runtime::AllGather{.in = runtime::of(std::span<const int64_t>(mine)),
                                                       .out = runtime::of(std::span<int64_t>(all))},
                                    deadline));
  std::fill(values.begin(), values.end(), 0.0);
  for (size_t i = 0; i < all.size(); ++i) values[i % values.size()] += std::bit_cast<double>(all[i]);
  return values;
}

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

std::string TrainerSnapshot::bytes(std::string_view prefix) const {
  StateHeader header{.seed = seed, .next_step = next_step, .count = std::ssize(weights)};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  uint32_t crc = crc32c({reinterpret_cast<const char*>(&header), offsetof(StateHeader, crc)});
  for (const auto* buffer : {&weights, &first_moments, &second_moments}) crc = crc32c(as_bytes(*buffer), crc);
  header.crc = crc;
  std::string out;
  out.reserve(prefix.size() + sizeof header + 3 * weights.size() * sizeof(float));
  out += prefix;
  out.append(reinterpret_cast<const char*>(&header), sizeof header);
  for (const auto* buffer : {&weights, &first_moments, &second_moments}) out += as_bytes(*buffer);
  return out;
}

Trainer::Trainer(const TrainConfig& config, const model::DecoderConfig& decoder_config, ThreadPool& pool)
    : config_(config),
      decoder_(model::describe(decoder_config)),
      parameters_(decoder_, config.precision == Precision::kBF16 ? DType::kBF16 : DType::kF32, pool),
      network_(decoder_, parameters_, {.recompute = config.recompute}, pool) {}

Result<StepResult> Trainer::step(const data::Batch& batch, Communicator* communicator, Deadline deadline) {
  parameters_.clear_gradients();
  const int64_t row = batch.length + 1;
  const int64_t micro = config_.batch.micro_sequences > 0 ? config_.batch.micro_sequences : batch.sequences;
  double loss = 0;
  for (int64_t first = 0; first < batch.sequences; first += micro) {
    const int64_t count = std::min(micro, batch.sequences - first);
    loss +=
        network_.train({count, batch.length,
                        std::span(batch.tokens)
                            .subspan(static_cast<size_t>(first * row), static_cast<size_t>(count * row))});
  }
  if (communicator != nullptr && communicator->size() > 1) {
    const auto gradients = runtime::of(parameters_.gradients());
    RETURN_IF_ERROR(communicator->run(runtime::AllReduce{.in = gradients, .out = gradients}, deadline));
  }
  ASSIGN_OR_RETURN(
      const std::vector<double> sums,
      sum_over_ranks({loss, static_cast<double>(batch.sequences * batch.length)}, communicator, deadline));
  StepResult result{.loss = sums[0] / sums[1],
                    .lr = learning_rate(config_.optimizer, next_step_, config_.steps),
                    .tokens = static_cast<int64_t>(sums[1])};
  if (!std::isfinite(result.loss)) {
    return make_error(ErrorCode::kInvalid,
                      "the loss of step {} is {}; lower optimizer.lr or lengthen the warm-up", next_step_,
                      result.loss);
  }
  result.gradient_norm = parameters_.gradient_norm() / sums[1];
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

Result<double> Trainer::evaluate(const data::Sampler& sampler, int64_t samples, Communicator* communicator,
                                 Deadline deadline) {
  const int64_t rank = communicator == nullptr ? 0 : communicator->rank();
  const int64_t world = communicator == nullptr ? 1 : communicator->size();
  const int64_t length = config_.batch.length;
  samples = std::min(samples, sampler.samples_per_epoch());
  std::vector<int32_t> tokens(static_cast<size_t>(length + 1));
  double loss = 0, count = 0;
  for (int64_t sample = samples * rank / world; sample < samples * (rank + 1) / world; ++sample) {
    RETURN_IF_ERROR(sampler.read_sample(sample, tokens));
    loss += network_.evaluate({1, length, tokens});
    count += static_cast<double>(length);
  }
  ASSIGN_OR_RETURN(const std::vector<double> sums, sum_over_ranks({loss, count}, communicator, deadline));
  return sums[0] / sums[1];
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

Result<void> Trainer::restore(std::string_view bytes) {
  StateHeader header;
  if (bytes.size() < sizeof header) {
    return make_error(ErrorCode::kCorrupt, "trainer state of {} bytes: it was cut short", bytes.size());
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    return make_error(ErrorCode::kInvalid, "not a trainer state of version 1");
  }
  const size_t buffer_bytes = parameters_.weights().size_bytes();
  if (header.count != std::ssize(parameters_.weights())) {
    return make_error(ErrorCode::kInvalid, "trainer state of {} values, this model has {}", header.count,
                      parameters_.weights().size());
  }
  if (bytes.size() != sizeof header + 3 * buffer_bytes) {
    return make_error(ErrorCode::kCorrupt, "trainer state of {} bytes, should be {}", bytes.size(),
                      sizeof header + 3 * buffer_bytes);
  }
  const std::string_view body = bytes.substr(sizeof header);
  if (crc32c(body, crc32c(bytes.substr(0, offsetof(StateHeader, crc)))) != header.crc) {
    return make_error(ErrorCode::kCorrupt, "trainer state: its checksum does not match");
  }
  size_t offset = 0;
  for (const auto buffer :
       {parameters_.weights(), parameters_.first_moments(), parameters_.second_moments()}) {
    std::memcpy(buffer.data(), body.data() + offset, buffer_bytes);
    offset += buffer_bytes;
  }
  next_step_ = header.next_step;
  parameters_.pack();
  return {};
}

}  // namespace flywheel::train
