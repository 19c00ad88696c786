// The optimizer of a training run: from config, over flat buffers of weights and gradients, or over a share
// of them (shares.h), of which alone it then keeps the state. What it keeps: train/optimizer_state.h.
//
// Where the tensor axis cuts a weight, each rank updates its part with its part of the state. A method that
// needs the whole matrix (muon, adafactor) puts the parts together with `OptimizerStep::sum`, computes the
// same step on every rank, and keeps its part: the weights are those of one worker. Of a weight that shares
// cut, one of the ranks that have parts puts these together, with its tensor ranks where these cut it too
// (cut_weights.h).
//
// Ownership: owns the state; weights and gradients are the caller's. State begins as zeros, the average as
// the first weights that step() sees. Threads: one at a time; `pool` is used inside, and no result depends on
// its size. Errors: UserError for a config that check() refuses; those of `sum` are its owner's.
//
// Weights that are kept in bf16 (held_weights.h) are updated in f32, some thousand values at a time, and
// rounded by chance; only methods that work value by value, or in blocks, can do so.
//
//   Optimizer optimizer(config, flat_weights(decoder));
//   optimizer.step(weights, gradients, {.lr = 1e-3, .update = 0, .gradient_scale = scale}, pool);
//   for (const StateBuffer& buffer : optimizer.state()) { ...write buffer.bytes under buffer.name... }
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/adamw.h"
#include "train/cut_weights.h"
#include "train/flat_weights.h"
#include "train/held_weights.h"
#include "train/links.h"
#include "train/offloaded_state.h"
#include "train/optimizer_config.h"
#include "train/optimizer_state.h"

namespace flywheel::train {

struct OptimizerStep {
  double lr = 0;
  int64_t update = 0;         // made before this one
  double gradient_scale = 1;  // multiplies each gradient first: clipping, 1 / tokens, 1 / loss scale
  std::optional<std::array<double, 2>> betas = std::nullopt;  // over the config's, where a schedule sets them
  // In place over the ranks of the tensor axis; for weights that are cut.
  std::function<void(std::span<float>)> sum = nullptr;
  Links* links = nullptr;  // for weights that shares cut; `failed` says how it went
  uint64_t seed = 0;       // of the rounding of weights that are kept in bf16
  // Called when values in f32 of the i-th weight are updated, from its `first` one that is here on: they may
  // change once more. Not of weights that shares cut, which have gradients.
  std::function<void(size_t i, int64_t first, std::span<float> weights)> then = nullptr;
};

// What a weight's update does not share with others': a pure function of config and weight.
struct WeightTerms {
  OptimizerType method = OptimizerType::kAdamW;
  double lr_scale = 1, weight_decay = 0, beta1 = 0, beta2 = 0;  // lr_scale 0: it stays as it is
  bool own_betas = false;
  friend bool operator==(const WeightTerms&, const WeightTerms&) = default;
};
WeightTerms weight_terms(const OptimizerConfig& config, const FlatWeight& weight);
// The step of adamw and adam with these terms.
kernels::AdamWStep adamw_step(const OptimizerConfig& config, const WeightTerms& terms,
                              const OptimizerStep& step);

struct StateBuffer {
  std::string name;  // first_moments, ...
  std::span<std::byte> bytes;
};

class Optimizer {
 public:
  // CHECKs that cut_of() allows a share to end where these do. `cut`: weights of which other ranks have
  // parts, all of which are in step() at the same time. With offload.optimizer nvme the state lies in files,
  // and so may the weights, with it or alone: UserError where the folder takes none. CHECKs that what lies in
  // files is updated value by value.
  Optimizer(const OptimizerConfig& config, const std::vector<FlatWeight>& weights,
            const OffloadConfig& offload = {}, WeightsIn in = WeightsIn::kMemory,
            const std::vector<CutWeight>& cut = {});

  // Both lie as the weights do. Of weights in files the span is not looked at.
  void step(std::span<float> weights, std::span<const float> gradients, const OptimizerStep& step,
            ThreadPool& pool);
  // The gradients of the i-th weight lie somewhere else.
  using GradientsOf = std::function<const float*(size_t)>;
  void step(std::span<float> weights, const GradientsOf& gradients, const OptimizerStep& step,
            ThreadPool& pool);
  // Weights as a rank keeps them: of the pieces that this was made for.
  void step(HeldWeights& weights, const GradientsOf& gradients, const OptimizerStep& step, ThreadPool& pool);

  // State in files: what went wrong in the last step. What lies in files is then that of before, what lies in
  // memory is not: go back to a snapshot.
  const Result<void>& failed() const { return failed_; }

  // The buffers of state_layout(). The bytes are the state itself; in files they are for reading, until the
  // next step.
  std::vector<StateBuffer> state();
  // To be filled with another state, which it then becomes with take_filled(); in memory it is the state
  // itself, and so it may be in files (OffloadedState::fill()).
  std::vector<StateBuffer> fill();
  void take_filled();
  // State in files: keeps what state() gave as it is. Null where it is in memory.
  std::shared_ptr<const void> hold() const { return state_in_files_ ? files_->hold() : nullptr; }
  // Where the weights lie with the state, or alone, for FiledWeights; null where they are in memory.
  OffloadedState* weights_file() const { return weights_in_files_ ? files_.get() : nullptr; }
  // What fill() has made room for of them, until take_filled(): at FiledWeights::places().
  std::span<float> filled_weights() const { return filled_weights_; }
  int64_t state_bytes() const { return layout_.bytes(); }
  // The average of the weights, each from a whole vector of 16; empty without ema_decay.
  std::span<const float> average();

 private:
  // A weight, as far as it is here.
  struct Piece : WeightTerms {
    FlatWeight weight;
    bool cut = false;  // of cut_
  };
  // What a method reads and writes: of `count` values, or of the whole matrix.
  struct Operands {
    float* weights;
    const float* gradients;
    std::vector<float*> state;  // of each slot
    int64_t count;
  };
  struct CutStep;
  void add_piece(const FlatWeight& weight);
  void add_cut(const CutWeight& cut);
  static void add_weights(const std::vector<FlatWeight>& weights, StateLayout& layout);
  // Where its values of the piece's weights from `at` lie; a block's where they have one in common.
  float* slot(size_t piece, size_t slot, int64_t at = 0);
  // Whether a rank has its part of what that slot holds; else it is the same on all.
  bool in_parts(size_t piece, size_t slot) const { return layout_.slots[piece][slot].weights_a_value == 1; }
  // Of a piece in memory: `count` values from `at` on, with their state; or all of it, in flat weights.
  Operands operands(size_t piece, int64_t at, float* weights, const float* gradients, int64_t count);
  Operands operands(size_t piece, std::span<float> weights, const GradientsOf& gradients);
  std::vector<StateBuffer> named(const Result<std::vector<std::span<std::byte>>>& buffers) const;
  // Weights of a piece, or some of them from `first` on, by the state that is theirs. `settle`, of weights in
  // bf16, is called once they have changed, before they are averaged.
  void update(size_t piece, int64_t first, Operands own, const OptimizerStep& step, ThreadPool& pool,
              const std::function<void()>& settle = nullptr);
  // Before and after weights change: their average (null without one) is taken out of the state, and follows.
  float* begin_average(Operands& own, const OptimizerStep& step) const;
  void end_average(float* average, const Operands& own, ThreadPool& pool) const;
  void update_bf16(size_t piece, HeldWeights& weights, const float* gradients, const OptimizerStep& step,
                   ThreadPool& pool);  // optimizer_held_weights.cc
  void step_files(std::span<float> weights, const GradientsOf& gradients, const OptimizerStep& step,
                  ThreadPool& pool);
  void apply(const Piece& piece, const Operands& operands, const OptimizerStep& step, ThreadPool& pool) const;
  // `weight`: all of the rank's part.
  void apply_together(size_t piece, const FlatWeight& weight, const Operands& own, const OptimizerStep& step,
                      ThreadPool& pool) const;
  // optimizer_cut_weights.cc
  void step_cut_weights(std::span<float> weights, const GradientsOf& gradients, const OptimizerStep& step,
                        ThreadPool& pool);
  Result<void> compute_wave(std::vector<CutStep>& wave, const OptimizerStep& step, ThreadPool& pool);
  void compute_whole(CutStep& cut, const OptimizerStep& step, ThreadPool& pool) const;

  OptimizerConfig config_;
  std::vector<Piece> pieces_;
  std::vector<std::pair<CutWeight, size_t>> cut_;  // and which of pieces_ is this rank's part
  StateLayout layout_;                             // of the pieces
  std::vector<std::vector<float>> buffers_;        // as layout_ says; codes of 8 bits lie in them as bytes
  std::unique_ptr<OffloadedState> files_;          // in their place, or of the weights alone
  bool state_in_files_ = false, weights_in_files_ = false;
  std::vector<int64_t> places_;  // in files_, of the pieces
  std::span<float> filled_weights_;
  Result<void> failed_;
};

// What gradients of this norm are multiplied by so that it is at most clip_norm. The norm is the global one:
// whoever holds a share sums the squares of all shares first.
double clip_factor(double norm, const OptimizerConfig& config);

}  // namespace flywheel::train
