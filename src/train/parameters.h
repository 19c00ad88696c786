// A rank's weights as the trainer keeps them: flat f32 buffers for weights and gradients, of all of
// LocalDecoder::weights or of the rank's share (shares.h says which by ZeRO's stage); and, beside them, what
// the kernels read: each matrix packed for the forward product and, transposed, for the gradient of its
// input. The optimizer's state is the optimizer's (train/optimizer.h).
//
// Without f32 masters (held_weights.h) matrices are kept in bf16, and where this rank has all of them an
// embedding's rows are these values themselves.
//
// The packed forms are rounded to the compute dtype; the weights are the truth: whoever changes them
// calls pack(). Where this rank has a share of them alone, pack() can do no more than to say that all forms
// are out of date, and make_forms() makes those of a bucket whose values have been gathered (bucket_mover.h).
//
// Where the f32 weights lie in a file (filed_weights.h), weights() and own_part() are not there: a part comes
// with start_read(), from the file that keep_in() names.
//
// Of the weights below an adapter (model/low_rank.h), which are frozen, there are the forms alone, made once
// by load_frozen(), and no f32 weights, gradients or state. Quantized matrices may stay in their blocks; then
// a form is unpacked when it is asked for, one of each kind at a time. Of a matrix that the tensor axis cuts
// by columns the blocks are kept that have some of this rank's.
//
// Ownership: owns everything. Threads: one at a time; `pool` is used inside.
//
//   Parameters parameters(whole(describe(config)), DType::kBF16, pool);
//   parameters.initialize(seed);
//   ...the network adds to gradients()...
//   optimizer.step(parameters.weights(), parameters.gradients(), {.lr = 1e-3}, pool);
//   parameters.pack(), parameters.clear_gradients();
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "kernels/linear.h"
#include "model/weights.h"
#include "train/filed_weights.h"
#include "train/flat_weights.h"
#include "train/held_weights.h"
#include "train/local_decoder.h"
#include "train/rounding.h"
#include "train/segments.h"
#include "train/shares.h"

namespace flywheel::train {

class Parameters {
 public:
  Parameters(const LocalDecoder& decoder, kernels::DType compute, ThreadPool& pool,
             Rounding rounding = Rounding::kNone, const ShareOptions& share = {},
             WeightsIn in = WeightsIn::kMemory, Masters masters = Masters::kF32);
  // Of weights in files, before anything else: borrows them.
  void keep_in(FiledWeights& file);

  // As initial_weights.h says: a pure function of `seed`. Of weights in files UserError where the disk takes
  // no more; the state beside them becomes zeros.
  void initialize(uint64_t seed);
  // Errors: kNotFound, kInvalid for a source that lacks a weight or has it in another shape; of the disk.
  Result<void> load(const model::WeightSource& source);
  // The frozen weights. `keep_blocks`: quantized matrices stay as they are in the source. The same errors.
  Result<void> load_frozen(std::shared_ptr<const model::WeightSource> source, bool keep_blocks);

  // What the kernels read, by index into LocalDecoder::weights: norms and biases in f32, ...
  std::span<const float> values(int index) const;
  const kernels::PackedWeight& packed(int index) const;
  const kernels::PackedWeight& packed_transposed(int index) const;
  // ... and the rows that an embedding reads, in the compute dtype; a frozen one's maybe in blocks.
  const void* rows(int index) const;
  kernels::DType rows_dtype(int index) const;
  bool trains(int index) const { return !entries_[at(index)].frozen; }
  // Where gradients of a weight are added; of a share's stage 2 and 3 until take_gradients() of its bucket.
  std::span<float> gradient(int index);
  kernels::DType compute() const { return compute_; }
  Rounding rounding() const { return rounding_; }
  const Shares& shares() const { return shares_; }

  // Flat, with a few zeros between weights: of shares().held(), and of all weights (stage 0 and 1) or the
  // share. weights(): of those that are in memory and in f32, CHECKed.
  std::span<float> weights();
  // Of weights in files it holds none.
  HeldWeights& held_weights() { return weights_; }
  // Of weights in memory, those of flat places from `begin`: where they lie, or put into `room`.
  std::span<const float> weights(int64_t begin, int64_t count, std::vector<float>& room) const;
  std::span<float> gradients() { return gradients_; }
  // Those of the i-th of shares().held().
  const float* held_gradient(size_t i) const;

  double squared_gradients() const;  // over gradients()
  void clear_gradients();
  // After weights() changed.
  void pack();

  // For the bucket mover. All forms that any step reads of a weight; those that are there and up to date.
  Forms forms(int index) const { return entries_[at(index)].forms; }
  Forms here(int index) const;
  // From the values of the whole bucket.
  void make_forms(int index, Forms forms, std::span<const float> bucket);
  void drop_forms(int index);  // and their memory
  // Of a bucket of weights in memory: the values of the own part.
  void read_own_part(const Bucket& bucket, std::span<float> out) const;
  std::span<const float> own_part(const Bucket& bucket) const;  // where they lie: with f32 masters
  // The same of weights in files; null elsewhere.
  std::unique_ptr<OffloadedState::Reading> start_read(const Bucket& bucket) const;
  const FiledWeights* filed() const { return filed_; }
  // Of a bucket: what has been added to its gradients here, and the place of the own part's sum.
  std::span<float> bucket_gradients(const Bucket& bucket);
  std::span<float> own_gradients(const Bucket& bucket);
  // Whether a share of the gradients alone is kept: at stages 2 and 3, where there are others to share with.
  bool shares_gradients() const { return !open_.empty(); }
  // Of such: gives bucket_gradients() away; the next to add begin with zeros.
  std::vector<float> take_gradients(const Bucket& bucket);

 private:
  struct Entry {
    FlatWeight place;
    Forms forms = 0, made = 0;
    bool linear = false;  // a matrix that is rounded to fp8 in that precision: of linear steps and of experts
    bool frozen = false;
    model::Tensor blocks;  // of a frozen matrix that stays quantized: this rank's rows; bytes are base_'s
    std::vector<uint8_t> cut_blocks;  // or, where columns are cut, these
    int64_t first_column = 0;         // of this rank's, in the blocks
    kernels::PackedWeight packed, transposed;
    std::vector<uint16_t> bf16_rows;
    std::vector<float> f32;  // rows or values, where they are not simply the f32 weights
  };
  // A form of a matrix in blocks; good until another one's is asked for.
  struct Unpacked {
    int index = -1;
    kernels::PackedWeight weight;
  };
  static size_t at(int index) { return static_cast<size_t>(index); }
  static void keep_quantized(Entry& entry, const model::Tensor& rows);
  const kernels::PackedWeight& unpack(int index, Unpacked& into, bool transposed) const;
  void make(size_t i, Forms forms, const float* w);
  void make_from_bf16(size_t i, Forms forms, const uint16_t* w);
  // What products see of the values `w` of weight `i`.
  const float* round(size_t i, const float* w);
  // Of weights in files room for other ones, at places(), until take_filled(); else nothing.
  Result<std::span<float>> begin_fill();
  Result<void> take_filled();
  const std::vector<FlatWeight>& places() const { return filed_ ? filed_->places() : shares_.held(); }
  void fill(size_t held, const float* whole, std::span<float> into);

  LocalDecoder decoder_;
  kernels::DType compute_;
  Rounding rounding_;
  ThreadPool& pool_;
  Shares shares_;
  WeightsIn in_;
  FiledWeights* filed_ = nullptr;
  std::vector<Entry> entries_;
  HeldWeights weights_;
  std::vector<float> gradients_;
  std::vector<std::vector<float>>
      open_;  // by bucket, gradients that are being added up, where these are shared
  std::shared_ptr<const model::WeightSource> base_;
  mutable Unpacked unpacked_, unpacked_transposed_;
  std::vector<float> rounded_;  // of the weight whose forms are being made, where there is a Rounding
};

}  // namespace flywheel::train
