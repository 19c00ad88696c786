#include "train/optimizer.h"

#include <re2/re2.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/adafactor.h"
#include "kernels/adamw.h"
#include "kernels/adamw_8bit.h"
#include "kernels/elementwise.h"
#include "kernels/lion.h"
#include "kernels/muon.h"
#include "kernels/sgd.h"

namespace flywheel::train {
namespace {

bool holds_match(const std::string& name, const std::string& expression) {
  return RE2::PartialMatch(name, expression);
}

void require(bool holds, const std::string& key, const std::string& what) {
  if (!holds) throw UserError(key, what);
}

void check_betas(const std::vector<double>& betas, const std::string& key) {
  const auto share = [](double b) { return b >= 0 && b < 1; };
  require(betas.size() == 2 && share(betas[0]) && share(betas[1]), key, "must be two numbers in [0, 1)");
}

void check_expression(const std::string& expression, const std::string& key) {
  const RE2 compiled(expression, RE2::Quiet);
  require(compiled.ok(), key, "\"" + expression + "\" is no regular expression: " + compiled.error());
}

}  // namespace

void check(const OptimizerConfig& c) {
  check_betas(c.betas, "optimizer.betas");
  require(c.lr > 0, "optimizer.lr", "must be above 0");
  require(c.min_lr >= 0 && c.min_lr <= c.lr, "optimizer.min_lr", "must be between 0 and optimizer.lr");
  require(c.warmup_steps >= 0, "optimizer.warmup_steps", "must be 0 (none) or more");
  require(c.clip_norm >= 0, "optimizer.clip_norm", "must be 0 (no clipping) or more");
  require(c.clip_epsilon >= 0, "optimizer.clip_epsilon", "must be 0 or more");
  require(c.epsilon > 0, "optimizer.epsilon", "must be above 0");
  require(c.weight_decay >= 0, "optimizer.weight_decay", "must be 0 (none) or more");
  require(c.ema_decay >= 0 && c.ema_decay < 1, "optimizer.ema_decay", "must be in [0, 1)");
  for (size_t i = 0; c.no_decay.has_value() && i < c.no_decay->size(); ++i)
    check_expression((*c.no_decay)[i], fmt::format("optimizer.no_decay[{}]", i));
  for (size_t i = 0; i < c.groups.size(); ++i) {
    const std::string key = fmt::format("optimizer.groups[{}]", i);
    require(!c.groups[i].match.empty(), key + ".match", "is empty: say which weights");
    check_expression(c.groups[i].match, key + ".match");
    require(c.groups[i].lr_scale >= 0, key + ".lr_scale", "must be 0 (frozen) or more");
    require(c.groups[i].weight_decay.value_or(0) >= 0, key + ".weight_decay", "must be 0 (none) or more");
    if (c.groups[i].betas.has_value()) check_betas(*c.groups[i].betas, key + ".betas");
  }
  require(c.sgd.momentum >= 0 && c.sgd.momentum < 1, "optimizer.sgd.momentum", "must be in [0, 1)");
  require(!c.sgd.nesterov || (c.sgd.momentum > 0 && c.sgd.dampening == 0), "optimizer.sgd.nesterov",
          "needs momentum above 0 and dampening 0");
  require(c.adafactor.beta1 >= 0 && c.adafactor.beta1 < 1, "optimizer.adafactor.beta1", "must be in [0, 1)");
  require(c.adafactor.decay_rate < 0, "optimizer.adafactor.decay_rate", "must be below 0");
  require(c.adafactor.clip_threshold > 0, "optimizer.adafactor.clip_threshold", "must be above 0");
  require(c.muon.momentum >= 0 && c.muon.momentum < 1, "optimizer.muon.momentum", "must be in [0, 1)");
  require(c.muon.iterations >= 1 && c.muon.iterations < 100, "optimizer.muon.iterations", "must be 1 to 99");
  require(c.muon.adamw_lr_scale > 0, "optimizer.muon.adamw_lr_scale", "must be above 0");
  if (!c.muon.adamw.empty()) check_expression(c.muon.adamw, "optimizer.muon.adamw");
}

WeightTerms weight_terms(const OptimizerConfig& config, const FlatWeight& weight) {
  WeightTerms terms{.method = method_of(config, weight),
                    .weight_decay = config.weight_decay,
                    .beta1 = config.betas[0],
                    .beta2 = config.betas[1]};
  const bool decays =
      config.no_decay.has_value()
          ? std::ranges::none_of(*config.no_decay, [&](const auto& e) { return holds_match(weight.name, e); })
          : weight.matrix;
  if (!decays) terms.weight_decay = 0;
  if (config.type == OptimizerType::kMuon && terms.method == OptimizerType::kAdamW)
    terms.lr_scale = config.muon.adamw_lr_scale;
  for (const ParameterGroup& group : config.groups) {
    if (!holds_match(weight.name, group.match)) continue;
    terms.lr_scale *= group.lr_scale;
    terms.weight_decay = group.weight_decay.value_or(terms.weight_decay);
    if (group.betas.has_value()) {
      terms.own_betas = true;
      terms.beta1 = (*group.betas)[0], terms.beta2 = (*group.betas)[1];
    }
    break;
  }
  if (!weight.has_gradient) terms.lr_scale = 0;
  return terms;
}

kernels::AdamWStep adamw_step(const OptimizerConfig& config, const WeightTerms& terms,
                              const OptimizerStep& s) {
  const bool scheduled = s.betas.has_value() && !terms.own_betas;
  const bool l2 = terms.method == OptimizerType::kAdam;
  const auto decay = static_cast<float>(terms.weight_decay);
  return {.lr = static_cast<float>(terms.lr_scale == 1 ? s.lr : s.lr * terms.lr_scale),
          .beta1 = static_cast<float>(scheduled ? (*s.betas)[0] : terms.beta1),
          .beta2 = static_cast<float>(scheduled ? (*s.betas)[1] : terms.beta2),
          .epsilon = static_cast<float>(config.epsilon),
          .weight_decay = l2 ? 0.0f : decay,
          .t = s.update + 1,
          .gradient_scale = static_cast<float>(s.gradient_scale),
          .l2 = l2 ? decay : 0.0f};
}

Optimizer::Optimizer(const OptimizerConfig& config, const std::vector<FlatWeight>& weights,
                     const OffloadConfig& offload, WeightsIn in, const std::vector<CutWeight>& cut)
    : config_(config), weights_in_files_(in == WeightsIn::kFiles) {
  check(config);
  for (const FlatWeight& weight : weights) add_piece(weight);
  for (const CutWeight& one : cut) add_cut(one);
  layout_ = state_layout(config, weights);
  state_in_files_ = offload.state_in_files() && layout_.bytes() > 0;
  if (state_in_files_ || weights_in_files_) {
    StateLayout filed;
    if (state_in_files_) filed = layout_;
    if (weights_in_files_) add_weights(weights, filed);
    for (const std::vector<StateSlot>& slots : filed.slots) places_.push_back(slots.at(0).offset);
    CHECK(layout_.buffers.empty() || can_offload(layout_), "this optimizer's state cannot be cut");
    const char* what = !weights_in_files_ ? "optimizer state"
                       : state_in_files_  ? "optimizer state and f32 weights"
                                          : "f32 weights";
    files_ = OffloadedState::open(offload, filed, what).value_or_throw();
  }
  if (state_in_files_) return;
  for (const StateLayout::Buffer& buffer : layout_.buffers)
    buffers_.emplace_back(static_cast<size_t>(buffer.bytes()) / sizeof(float), 0.0f);
}

// The last buffer, in whose places the state's values lie too (can_offload()).
void Optimizer::add_weights(const std::vector<FlatWeight>& weights, StateLayout& layout) {
  StateLayout::Buffer own{.name = "weights"};
  layout.slots.resize(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    layout.slots[i].push_back(
        {.buffer = layout.buffers.size(), .offset = own.count, .count = weights[i].count});
    own.count += padded_count(weights[i].count);
  }
  layout.buffers.push_back(std::move(own));
}

void Optimizer::add_piece(const FlatWeight& weight) {
  const Cut cut = cut_of(config_, weight);
  for (const int64_t edge : {weight.first, weight.first + weight.count}) {
    const bool inside = edge > 0 && edge < weight.own_count();
    CHECK(!inside || cut != Cut::kEvery256 || edge % kStateBlock == 0, "{} cannot be cut at value {}",
          weight.name, edge);
  }
  Piece piece{weight_terms(config_, weight), weight};
  pieces_.push_back(std::move(piece));
}

// Frozen ones have no step.
void Optimizer::add_cut(const CutWeight& cut) {
  const auto piece =
      std::ranges::find(pieces_, cut.weight, [](const Piece& one) { return one.weight.index; });
  if (piece == pieces_.end() || piece->lr_scale == 0) return;
  piece->cut = true;
  cut_.emplace_back(cut, static_cast<size_t>(piece - pieces_.begin()));
}

float* Optimizer::slot(size_t piece, size_t slot, int64_t at) {
  const StateSlot& s = layout_.slots[piece][slot];
  auto* bytes = reinterpret_cast<std::byte*>(buffers_[s.buffer].data());
  const int64_t value = s.offset + (at > 0 ? at / s.weights_a_value : 0);
  return reinterpret_cast<float*>(bytes + value * layout_.buffers[s.buffer].value_bytes);
}

void Optimizer::step(std::span<float> weights, std::span<const float> gradients, const OptimizerStep& s,
                     ThreadPool& pool) {
  CHECK(weights.size() == gradients.size(), "{} weights and {} gradients", weights.size(), gradients.size());
  step(
      weights, [&](size_t i) { return gradients.data() + pieces_[i].weight.offset; }, s, pool);
}

void Optimizer::step(std::span<float> weights, const GradientsOf& gradients, const OptimizerStep& s,
                     ThreadPool& pool) {
  for (const Piece& piece : pieces_) {
    CHECK(weights_in_files_ || piece.weight.offset + piece.weight.count <= std::ssize(weights),
          "{} is not in {} weights", piece.weight.name, weights.size());
  }
  if (files_ != nullptr) return step_files(weights, gradients, s, pool);
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (!pieces_[i].cut) update(i, 0, operands(i, weights, gradients), s, pool);
  }
  step_cut_weights(weights, gradients, s, pool);
}

Optimizer::Operands Optimizer::operands(size_t i, int64_t at, float* weights, const float* gradients,
                                        int64_t count) {
  Operands own{.weights = weights, .gradients = gradients, .state = {}, .count = count};
  for (size_t j = 0; j < layout_.slots[i].size(); ++j) own.state.push_back(slot(i, j, at));
  return own;
}

Optimizer::Operands Optimizer::operands(size_t i, std::span<float> weights, const GradientsOf& gradients) {
  const FlatWeight& weight = pieces_[i].weight;
  return operands(i, 0, weights.data() + weight.offset, gradients(i), weight.count);
}

void Optimizer::update(size_t i, int64_t first, Operands own, const OptimizerStep& s, ThreadPool& pool,
                       const std::function<void()>& settle) {
  const Piece& piece = pieces_[i];
  float* const average = begin_average(own, s);
  if (piece.lr_scale != 0) {  // else frozen, or without a gradient
    const bool whole = needs_whole(piece.method);
    CHECK(!whole || own.count == piece.weight.own_count(), "{} is updated as a whole, and here in part",
          piece.weight.name);
    whole&& piece.weight.part.has_value() ? apply_together(i, piece.weight, own, s, pool)
                                          : apply(piece, own, s, pool);
    if (settle != nullptr) settle();
  }
  end_average(average, own, pool);
  if (settle == nullptr && s.then != nullptr) s.then(i, first, {own.weights, static_cast<size_t>(own.count)});
}

// The last slot, no matter of the method.
float* Optimizer::begin_average(Operands& own, const OptimizerStep& s) const {
  if (config_.ema_decay == 0) return nullptr;
  float* const average = own.state.back();
  own.state.pop_back();
  if (s.update == 0) std::copy_n(own.weights, own.count, average);
  return average;
}

void Optimizer::end_average(float* average, const Operands& own, ThreadPool& pool) const {
  if (average != nullptr)
    kernels::lerp(average, own.weights, static_cast<float>(1 - config_.ema_decay), own.count, pool);
}

// A sub-group is a range of places in the files: weights, or parts of them that begin at whole vectors.
void Optimizer::step_files(std::span<float> weights, const GradientsOf& gradients, const OptimizerStep& s,
                           ThreadPool& pool) {
  size_t first = 0;  // pieces before it are done
  failed_ = files_->update([&](int64_t begin, int64_t end, const std::vector<float*>& filed) {
    for (size_t i = first; i < pieces_.size(); ++i) {
      const FlatWeight& weight = pieces_[i].weight;
      const int64_t place = places_[i];
      if (place >= end) break;
      const int64_t from = std::max(begin, place), to = std::min(end, place + weight.count);
      if (from < to) {
        Operands own{.weights = weights_in_files_ ? filed.back() + (from - begin)
                                                  : weights.data() + weight.offset + (from - place),
                     .gradients = gradients(i) + (from - place),
                     .state = {},
                     .count = to - from};
        for (size_t j = 0; j < layout_.buffers.size(); ++j)
          own.state.push_back(state_in_files_ ? filed[j] + (from - begin) : slot(i, j) + (from - place));
        update(i, from - place, std::move(own), s, pool);
      }
      if (place + weight.count <= end) first = i + 1;
    }
  });
}

// Every rank puts its parts of weights, gradients and state into zeros; the sum of the ranks' is the whole.
void Optimizer::apply_together(size_t index, const FlatWeight& weight, const Operands& own,
                               const OptimizerStep& s, ThreadPool& pool) const {
  CHECK(s.sum != nullptr, "{} is cut over ranks, and its method needs the whole", weight.name);
  const auto n = static_cast<size_t>(weight.whole_count());
  std::vector<float> whole(n * (2 + own.state.size()), 0.0f);
  const auto spread = [&](const float* part, float* to) {
    for_each_run(weight, [&](int64_t in_whole, int64_t at, int64_t count) {
      std::copy_n(part + at, count, to + in_whole);
    });
  };
  Operands all{.weights = whole.data(),
               .gradients = whole.data() + n,
               .state = own.state,
               .count = static_cast<int64_t>(n)};
  size_t used = 2 * n;
  spread(own.weights, all.weights);
  spread(own.gradients, whole.data() + n);
  for (size_t i = 0; i < own.state.size(); ++i) {
    if (!in_parts(index, i)) continue;
    all.state[i] = whole.data() + used;
    spread(own.state[i], all.state[i]);
    used += n;
  }
  s.sum(std::span(whole).first(used));
  apply(pieces_[index], all, s, pool);
  const auto keep = [&](const float* from, float* part) {
    for_each_run(weight, [&](int64_t in_whole, int64_t at, int64_t count) {
      std::copy_n(from + in_whole, count, part + at);
    });
  };
  keep(all.weights, own.weights);
  for (size_t i = 0; i < own.state.size(); ++i) {
    if (in_parts(index, i)) keep(all.state[i], own.state[i]);
  }
}

void Optimizer::apply(const Piece& p, const Operands& o, const OptimizerStep& s, ThreadPool& pool) const {
  float* w = o.weights;
  const float* g = o.gradients;
  const auto values = [&](size_t i) { return o.state[i]; };
  const auto codes = [&](size_t i) { return reinterpret_cast<uint8_t*>(o.state[i]); };
  const kernels::AdamWStep adamw = adamw_step(config_, p, s);
  const float lr = adamw.lr, beta1 = adamw.beta1, beta2 = adamw.beta2;
  const auto decay = static_cast<float>(p.weight_decay), scale = static_cast<float>(s.gradient_scale);
  switch (p.method) {
    case OptimizerType::kAdam:
    case OptimizerType::kAdamW:
      return kernels::adamw(w, values(0), values(1), g, nullptr, o.count, adamw, pool);
    case OptimizerType::kAdamW8Bit:
      return kernels::adamw_8bit(w, codes(0), values(1), codes(2), values(3), g, o.count, adamw, pool);
    case OptimizerType::kSgd:
      return kernels::sgd(w, config_.sgd.momentum == 0 ? nullptr : values(0), g, o.count,
                          {.lr = lr,
                           .momentum = static_cast<float>(config_.sgd.momentum),
                           .dampening = static_cast<float>(config_.sgd.dampening),
                           .nesterov = config_.sgd.nesterov,
                           .l2 = decay,
                           .t = s.update + 1,
                           .gradient_scale = scale},
                          pool);
    case OptimizerType::kLion:
      return kernels::lion(
          w, values(0), g, o.count,
          {.lr = lr, .beta1 = beta1, .beta2 = beta2, .weight_decay = decay, .gradient_scale = scale}, pool);
    case OptimizerType::kAdafactor: {
      const AdafactorConfig& c = config_.adafactor;
      const kernels::AdafactorStep step{.lr = lr,
                                        .decay_rate = static_cast<float>(c.decay_rate),
                                        .clip_threshold = static_cast<float>(c.clip_threshold),
                                        .epsilon1 = static_cast<float>(c.epsilon1),
                                        .epsilon2 = static_cast<float>(c.epsilon2),
                                        .scale_parameter = c.scale_parameter,
                                        .relative_step = c.relative_step,
                                        .beta1 = static_cast<float>(c.beta1),
                                        .weight_decay = decay,
                                        .t = s.update + 1,
                                        .gradient_scale = scale};
      const bool momentum = c.beta1 > 0;
      if (!p.weight.matrix) {
        return kernels::adafactor_vector(w, values(0), momentum ? values(1) : nullptr, g, o.count, step,
                                         pool);
      }
      return kernels::adafactor_matrix(w, values(0), values(1), momentum ? values(2) : nullptr, g,
                                       p.weight.shape[0], p.weight.shape[1], step, pool);
    }
    case OptimizerType::kMuon:
      return kernels::muon(
          w, values(0), g, p.weight.shape[0], p.weight.shape[1],
          {.lr = lr,
           .momentum = static_cast<float>(config_.muon.momentum),
           .weight_decay = decay,
           .nesterov = config_.muon.nesterov,
           .scale = config_.muon.scale == MuonScaleType::kShape ? kernels::MuonScale::kShape
                                                                : kernels::MuonScale::kLikeAdamW,
           .iterations = static_cast<int>(config_.muon.iterations),
           .gradient_scale = scale},
          pool);
  }
}

std::vector<StateBuffer> Optimizer::named(const Result<std::vector<std::span<std::byte>>>& buffers) const {
  if (!buffers.ok()) throw UserError("", buffers.error());
  std::vector<StateBuffer> state;
  for (size_t i = 0; i < layout_.buffers.size(); ++i)
    state.push_back({layout_.buffers[i].name, (*buffers)[i]});
  return state;
}

std::vector<StateBuffer> Optimizer::fill() {
  if (!files_) return state();
  const auto filled = files_->fill();
  if (!filled.ok()) throw UserError("", filled.error());
  if (weights_in_files_)
    filled_weights_ = {reinterpret_cast<float*>(filled->back().data()),
                       filled->back().size() / sizeof(float)};
  return state_in_files_ ? named(filled) : state();
}

void Optimizer::take_filled() {
  filled_weights_ = {};
  if (files_) files_->take_filled().value_or_throw();
}

std::vector<StateBuffer> Optimizer::state() {
  if (state_in_files_) return named(files_->read());
  std::vector<StateBuffer> state;
  for (size_t i = 0; i < buffers_.size(); ++i)
    state.push_back({layout_.buffers[i].name, std::as_writable_bytes(std::span(buffers_[i]))});
  return state;
}

std::span<const float> Optimizer::average() {
  for (const StateBuffer& buffer : state()) {
    if (buffer.name != "average") continue;
    return {reinterpret_cast<const float*>(buffer.bytes.data()), buffer.bytes.size() / sizeof(float)};
  }
  return {};
}

double clip_factor(double norm, const OptimizerConfig& config) {
  const double measured = norm + config.clip_epsilon;
  return config.clip_norm > 0 && measured > config.clip_norm ? config.clip_norm / measured : 1.0;
}

}  // namespace flywheel::train
