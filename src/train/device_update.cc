#include "train/device_update.h"

#include <algorithm>
#include <iterator>

#include "kernels/adamw_device.h"

namespace flywheel::train {

using kernels::AdamWPiece;
using kernels::StepNorm;
using kernels::StepTerms;

namespace {

// Of AdamW the decay is each piece's own; Adam's is part of the gradient.
WeightTerms shared_part(WeightTerms terms) {
  if (terms.method == OptimizerType::kAdamW) terms.weight_decay = 0;
  return terms;
}

StepTerms terms_of(const OptimizerConfig& config, const WeightTerms& weights, const OptimizerStep& step,
                   double targets) {
  StepTerms terms = kernels::step_terms(adamw_step(config, weights, step));
  terms.times = targets;
  terms.clip_norm = config.clip_norm, terms.clip_epsilon = config.clip_epsilon;
  terms.skips_not_finite = 1;
  return terms;
}

}  // namespace

DeviceUpdate::DeviceUpdate(const OptimizerConfig& config, const DeviceWeights& weights)
    : config_(config), count_(weights.count()) {
  for (const DeviceSegment& segment : weights.segments()) {
    if (segment.terms.lr_scale == 0) continue;  // stays as it is
    const WeightTerms shared = shared_part(segment.terms);
    auto set = std::ranges::find(sets_, shared, &Set::terms);
    if (set == sets_.end()) set = sets_.insert(set, {.terms = shared, .pieces = {}});
    const bool decays = segment.terms.method == OptimizerType::kAdamW;
    const float decay = decays ? static_cast<float>(segment.terms.weight_decay) : 0.0f;
    std::ranges::copy(kernels::adamw_pieces({{segment.begin, segment.end, decay}}),
                      std::back_inserter(set->pieces));
  }
  // The norm is asked for where nothing is updated, too.
  if (sets_.empty())
    sets_.push_back({.terms = {.beta1 = config.betas[0], .beta2 = config.betas[1]}, .pieces = {}});
}

int64_t DeviceUpdate::terms_at(size_t set) const {
  constexpr int64_t kAligned = (static_cast<int64_t>(sizeof(StepTerms)) + 255) / 256 * 256;
  return static_cast<int64_t>(set) * kAligned;
}

Result<void> DeviceUpdate::allocate(kernels::Device& device) {
  device_ = &device;
  constexpr auto kPiece = static_cast<int64_t>(sizeof(AdamWPiece));
  std::vector<AdamWPiece> pieces;
  for (Set& set : sets_) {
    set.first_piece = std::ssize(pieces);
    pieces.insert(pieces.end(), set.pieces.begin(), set.pieces.end());
  }
  ASSIGN_OR_RETURN(on_device_, device.allocate(pieces_at() + std::ssize(pieces) * kPiece));
  ASSIGN_OR_RETURN(norm_, device.allocate(sizeof(StepNorm)));
  ASSIGN_OR_RETURN(workspace_, device.allocate(kernels::kNormParts * static_cast<int64_t>(sizeof(double))));
  ASSIGN_OR_RETURN(terms_here_, device.allocate(pieces_at(), kernels::MemoryKind::kHost));
  ASSIGN_OR_RETURN(norm_here_, device.allocate(sizeof(StepNorm), kernels::MemoryKind::kHost));
  return on_device_.upload(pieces.data(), std::ssize(pieces) * kPiece, pieces_at());
}

Result<void> DeviceUpdate::start_norm(DeviceState& state, const OptimizerStep& step, double targets) {
  for (size_t i = 0; i < sets_.size(); ++i) {
    auto* const terms = reinterpret_cast<StepTerms*>(terms_here_.as<std::byte>() + terms_at(i));
    *terms = terms_of(config_, sets_[i].terms, step, targets);
  }
  RETURN_IF_ERROR(on_device_.copy(terms_here_, pieces_at()));
  device_->kernels().gradient_norm(device_->stream(), norm_.as<StepNorm>(), workspace_.as<double>(),
                                   state.gradients.as<float>(), count_, on_device_.as<StepTerms>());
  return norm_here_.copy(norm_, sizeof(StepNorm));
}

void DeviceUpdate::start(DeviceState& state) {
  for (size_t i = 0; i < sets_.size(); ++i) {
    const Set& set = sets_[i];
    if (set.pieces.empty()) continue;
    const std::byte* const base = on_device_.as<std::byte>();
    device_->kernels().adamw(
        device_->stream(), state.masters.as<float>(), state.first_moments.as<float>(),
        state.second_moments.as<float>(), state.gradients.as<float>(), state.copies.as<kernels::bf16>(),
        reinterpret_cast<const AdamWPiece*>(base + pieces_at()) + set.first_piece, std::ssize(set.pieces),
        reinterpret_cast<const StepTerms*>(base + terms_at(i)), norm_.as<StepNorm>());
  }
}

Result<double> DeviceUpdate::norm() {
  RETURN_IF_ERROR(device_->synchronize());
  return norm_here_.as<StepNorm>()->norm;
}

}  // namespace flywheel::train
