#include "train/parameters.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kernels/elementwise.h"
#include "kernels/fp8.h"
#include "kernels/quant.h"
#include "train/initial_weights.h"

namespace flywheel::train {
namespace {

using kernels::DType;
using model::Op;

// The rows of a whole weight that are this rank's; of a vector, its values.
model::Tensor rows_of(model::Tensor whole, const FlatWeight& weight) {
  if (!weight.part.has_value()) return whole;
  const FlatWeight::Part& part = *weight.part;
  const int64_t row = kernels::row_bytes(whole.dtype, whole.shape.size() > 1 ? whole.cols() : 1);
  whole.shape[0] = part.row_end - part.row_begin;
  whole.bytes = whole.bytes.subspan(static_cast<size_t>(part.row_begin * row),
                                    static_cast<size_t>(whole.shape[0] * row));
  return whole;
}

// Of such rows, the values in this rank's columns.
std::vector<float> values_of(const model::Tensor& rows, const FlatWeight& weight) {
  std::vector<float> values = model::to_f32(rows);
  if (std::ssize(values) == weight.own_count()) return values;
  const int64_t width = rows.cols(), begin = weight.part->column_begin,
                count = weight.part->column_end - begin;
  std::vector<float> own(static_cast<size_t>(weight.own_count()));
  for (int64_t row = 0; row < rows.rows(); ++row)
    std::copy_n(values.begin() + row * width + begin, count, own.begin() + row * count);
  return own;
}

}  // namespace

Parameters::Parameters(const LocalDecoder& decoder, DType compute, ThreadPool& pool, Rounding rounding,
                       const ShareOptions& share, WeightsIn in, Masters masters)
    : decoder_(decoder),
      compute_(compute),
      rounding_(rounding),
      pool_(pool),
      shares_(decoder_, share),
      in_(in),
      weights_(decoder_, in == WeightsIn::kMemory ? shares_.held() : std::vector<FlatWeight>(),
               in == WeightsIn::kMemory ? shares_.held_count() : 0, masters) {
  CHECK(in == WeightsIn::kMemory || shares_.partitioned(), "weights in files are gathered");
  CHECK(in == WeightsIn::kMemory || masters == Masters::kF32, "weights in files are in f32");
  CHECK(compute == DType::kF32 || compute == DType::kBF16, "training in {}", dtype_name(compute));
  CHECK(rounding == Rounding::kNone || compute == DType::kF32, "rounded factors are multiplied in f32");
  CHECK(masters == Masters::kF32 || compute == DType::kBF16, "bf16 weights, and products in {}",
        dtype_name(compute));
  for (const FlatWeight& weight : shares_.weights()) {
    Entry& entry = entries_.emplace_back();
    entry.place = weight;
    entry.frozen = decoder_.weights[weight.index].role == model::WeightRole::kFrozen;
  }
  for (const auto& chunk : segments_of(decoder_)) {
    for (const Segment& segment : chunk) {
      for (const Visit visit : {Visit::kForward, Visit::kBackward}) {
        for (const auto& [weight, forms] : reads_of(decoder_, segment, visit, Recompute::kNone))
          entries_[at(weight)].forms |= forms;
      }
    }
  }
  for (const LocalStep& s : decoder_.steps) {
    const bool computes = s.exchange == Exchange::kNone && !s.bias_alone;
    if (!computes || (s.op != Op::kLinear && s.op != Op::kExperts)) continue;
    for (const int weight : s.all_weights()) entries_[at(weight)].linear = true;
  }
  const bool whole = shares_.stage() <= 1 || share.ranks == 1;
  gradients_.assign(static_cast<size_t>(whole ? shares_.count() : shares_.share_count()), 0.0f);
  if (!whole) open_.resize(shares_.buckets().size());
}

void Parameters::keep_in(FiledWeights& file) {
  CHECK(in_ == WeightsIn::kFiles, "the f32 weights are in memory");
  filed_ = &file;
}

std::span<float> Parameters::weights() {
  CHECK(in_ == WeightsIn::kMemory, "the f32 weights are in files");
  return weights_.f32();
}

Result<std::span<float>> Parameters::begin_fill() {
  if (in_ == WeightsIn::kMemory) return std::span<float>();
  CHECK(filed_ != nullptr, "weights in files, and no file");
  return filed_->fill();
}

Result<void> Parameters::take_filled() {
  if (filed_ != nullptr) return filed_->take_filled();
  return {};
}

void Parameters::initialize(uint64_t seed) {
  const InitialWeights initial(decoder_, seed);
  const std::span<float> into = begin_fill().value_or_throw();
  const std::vector<FlatWeight>& held = places();
  pool_.parallel_for(std::ssize(held), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const FlatWeight& place = held[static_cast<size_t>(i)];
      if (entries_[place.index].frozen) continue;
      fill(static_cast<size_t>(i), initial.draw(place).data(), into);
    }
  });
  take_filled().value_or_throw();
  pack();
}

// What is held of a weight, from all of its values.
void Parameters::fill(size_t held, const float* whole, std::span<float> into) {
  const FlatWeight& place = places()[held];
  for_each_run(place, [&](int64_t from, int64_t to, int64_t count) {
    const std::span<const float> run(whole + from, static_cast<size_t>(count));
    if (filed_ == nullptr) return weights_.write(place.offset + to, run);
    std::ranges::copy(run, into.begin() + place.offset + to);
  });
}

Result<void> Parameters::load(const model::WeightSource& source) {
  ASSIGN_OR_RETURN(const std::span<float> into, begin_fill());
  for (size_t i = 0; i < shares_.held().size(); ++i) {
    const FlatWeight& place = shares_.held()[i];
    if (entries_[place.index].frozen) continue;
    ASSIGN_OR_RETURN(const model::Tensor tensor, find_tensor(source, place));
    fill(i, model::to_f32(tensor).data(), into);
  }
  RETURN_IF_ERROR(take_filled());
  pack();
  return {};
}

Result<void> Parameters::load_frozen(std::shared_ptr<const model::WeightSource> source, bool keep_blocks) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    if (!e.frozen) continue;
    ASSIGN_OR_RETURN(model::Tensor tensor, find_tensor(*source, e.place));
    const model::Tensor rows = rows_of(std::move(tensor), e.place);
    if (keep_blocks && kernels::is_quantized(rows.dtype)) {
      keep_quantized(e, rows);
      e.made = e.forms;
    } else {
      make(i, e.forms, values_of(rows, e.place).data());
    }
  }
  base_ = std::move(source);
  return {};
}

// Where the tensor axis cuts columns, it may cut them inside a block, which both ranks then keep.
void Parameters::keep_quantized(Entry& e, const model::Tensor& rows) {
  e.blocks = rows;
  const std::optional<FlatWeight::Part>& part = e.place.part;
  if (!part.has_value() || part->column_end - part->column_begin == rows.cols()) return;
  const int64_t block = kernels::block_elements(rows.dtype);
  const int64_t first = part->column_begin / block * block;
  const int64_t count = (part->column_end - first + block - 1) / block * block;
  const int64_t from = kernels::row_bytes(rows.dtype, first), bytes = kernels::row_bytes(rows.dtype, count);
  const int64_t row_bytes = kernels::row_bytes(rows.dtype, rows.cols());
  e.cut_blocks.resize(static_cast<size_t>(rows.rows() * bytes));
  for (int64_t row = 0; row < rows.rows(); ++row)
    std::copy_n(rows.bytes.begin() + row * row_bytes + from, bytes, e.cut_blocks.begin() + row * bytes);
  e.first_column = part->column_begin - first;
  e.blocks.shape = {rows.rows(), count};
  e.blocks.bytes = e.cut_blocks;
}

std::span<const float> Parameters::values(int index) const {
  const Entry& e = entries_[at(index)];
  const auto count = static_cast<size_t>(e.place.own_count());
  if (!shares_.partitioned() && !e.frozen) return {weights_.f32(at(index)), count};
  CHECK(e.f32.size() == count, "the values of {} are not here", e.place.name);
  return e.f32;
}

const kernels::PackedWeight& Parameters::packed(int index) const {
  const Entry& e = entries_[at(index)];
  if (!e.blocks.bytes.empty()) return unpack(index, unpacked_, false);
  CHECK(!e.packed.empty(), "{} is not here for its product", e.place.name);
  return e.packed;
}

const kernels::PackedWeight& Parameters::packed_transposed(int index) const {
  const Entry& e = entries_[at(index)];
  if (!e.blocks.bytes.empty()) return unpack(index, unpacked_transposed_, true);
  CHECK(!e.transposed.empty(), "{} is not here for the gradient of its input", e.place.name);
  return e.transposed;
}

const kernels::PackedWeight& Parameters::unpack(int index, Unpacked& into, bool transposed) const {
  if (into.index == index) return into.weight;
  into = {};  // its memory first
  const Entry& e = entries_[at(index)];
  const model::Tensor& blocks = e.blocks;
  const int64_t N = blocks.rows(), K = decoder_.weights[at(index)].shape[1], held = blocks.cols();
  const int64_t row_bytes = kernels::row_bytes(blocks.dtype, held);
  std::vector<float> w(static_cast<size_t>(N * K));
  pool_.parallel_for(N, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(held == K ? 0 : held));
    for (int64_t n = begin; n < end; ++n) {
      float* to = w.data() + n * K;
      kernels::dequantize_row(held == K ? to : row.data(), blocks.dtype, blocks.bytes.data() + n * row_bytes,
                              held);
      if (held != K) std::copy_n(row.begin() + e.first_column, K, to);
    }
  });
  into.weight = transposed ? kernels::PackedWeight::pack_transposed_from_f32(compute_, w.data(), N, K, pool_)
                           : kernels::PackedWeight::pack_from_f32(compute_, w.data(), N, K, pool_);
  into.index = index;
  return into.weight;
}

DType Parameters::rows_dtype(int index) const {
  const Entry& e = entries_[at(index)];
  return e.blocks.bytes.empty() ? compute_ : e.blocks.dtype;
}

const void* Parameters::rows(int index) const {
  const Entry& e = entries_[at(index)];
  if (!e.blocks.bytes.empty()) return e.blocks.bytes.data();
  const bool here = !shares_.partitioned() && !e.frozen;
  if (here && weights_.bf16(at(index)) != nullptr) return weights_.bf16(at(index));
  if (compute_ == DType::kBF16) return e.bf16_rows.data();
  if (rounding_ == Rounding::kNone && here) return weights_.f32(at(index));
  return e.f32.data();
}

std::span<float> Parameters::gradient(int index) {
  const FlatWeight& place = entries_[at(index)].place;
  const Bucket& bucket = shares_.buckets()[shares_.bucket_of(index)];
  return bucket_gradients(bucket).subspan(static_cast<size_t>(place.offset - bucket.begin),
                                          static_cast<size_t>(place.count));
}

std::span<float> Parameters::bucket_gradients(const Bucket& bucket) {
  const auto size = static_cast<size_t>(bucket.size());
  if (open_.empty()) return std::span(gradients_).subspan(static_cast<size_t>(bucket.begin), size);
  std::vector<float>& open = open_[shares_.bucket_of(static_cast<int>(bucket.first))];
  if (open.empty()) open.assign(size, 0.0f);
  return open;
}

std::vector<float> Parameters::take_gradients(const Bucket& bucket) {
  bucket_gradients(bucket);
  return std::exchange(open_[shares_.bucket_of(static_cast<int>(bucket.first))], {});
}

std::span<float> Parameters::own_gradients(const Bucket& bucket) {
  const int64_t begin = open_.empty() ? bucket.begin + bucket.rank * bucket.part : bucket.share_begin;
  return std::span(gradients_).subspan(static_cast<size_t>(begin), static_cast<size_t>(bucket.part));
}

std::span<const float> Parameters::weights(int64_t begin, int64_t count, std::vector<float>& room) const {
  CHECK(in_ == WeightsIn::kMemory, "the f32 weights are in files");
  if (weights_.masters() == Masters::kF32)
    return weights_.f32().subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
  room.resize(static_cast<size_t>(count));
  weights_.read(begin, room);
  return room;
}

void Parameters::read_own_part(const Bucket& bucket, std::span<float> out) const {
  weights_.read(bucket.share_begin, out.first(static_cast<size_t>(bucket.part)));
}

std::unique_ptr<OffloadedState::Reading> Parameters::start_read(const Bucket& bucket) const {
  return filed_ ? filed_->start_read(shares_.bucket_of(static_cast<int>(bucket.first))) : nullptr;
}

std::span<const float> Parameters::own_part(const Bucket& bucket) const {
  CHECK(in_ == WeightsIn::kMemory, "the f32 weights are in files");
  return weights_.f32().subspan(static_cast<size_t>(bucket.share_begin), static_cast<size_t>(bucket.part));
}

const float* Parameters::held_gradient(size_t i) const {
  const FlatWeight& piece = shares_.held()[i];
  if (!open_.empty()) return gradients_.data() + piece.offset;
  return gradients_.data() + entries_[piece.index].place.offset + piece.first;
}

double Parameters::squared_gradients() const {
  return kernels::sum_of_squares(gradients_.data(), std::ssize(gradients_), pool_);
}

void Parameters::clear_gradients() {
  for (std::vector<float>& open : open_) open = std::vector<float>();
  pool_.parallel_for(std::ssize(gradients_), 1 << 16, [&](int64_t begin, int64_t end) {
    std::fill(gradients_.begin() + begin, gradients_.begin() + end, 0.0f);
  });
}

void Parameters::pack() {
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    if (e.frozen) continue;
    e.made = 0;
    if (shares_.partitioned()) continue;
    const uint16_t* bf16 = weights_.bf16(i);
    bf16 != nullptr ? make_from_bf16(i, e.forms, bf16) : make(i, e.forms, weights_.f32(i));
  }
}

Forms Parameters::here(int index) const {
  return entries_[at(index)].made;
}

void Parameters::make_forms(int index, Forms forms, std::span<const float> bucket) {
  const Bucket& of = shares_.buckets()[shares_.bucket_of(index)];
  make(at(index), forms, bucket.data() + entries_[at(index)].place.offset - of.begin);
}

void Parameters::drop_forms(int index) {
  Entry& e = entries_[at(index)];
  e.made = 0;
  e.packed = {}, e.transposed = {};
  e.bf16_rows = std::vector<uint16_t>(), e.f32 = std::vector<float>();  // {} would keep their memory
}

void Parameters::make(size_t i, Forms forms, const float* w) {
  Entry& e = entries_[i];
  const int64_t count = e.place.own_count();
  const bool apart = shares_.partitioned() || e.frozen;  // values and f32 rows are not simply the f32 weights
  e.made |= forms;
  if ((forms & kValues) != 0 && apart) e.f32.assign(w, w + count);
  if ((forms & (kRows | kPacked | kTransposed)) == 0) return;
  if (rounding_ != Rounding::kNone) w = round(i, w);
  if ((forms & kRows) != 0 && compute_ == DType::kBF16) {
    e.bf16_rows.resize(static_cast<size_t>(count));
    pool_.parallel_for(count, 1 << 16, [&](int64_t begin, int64_t end) {
      kernels::from_f32(e.bf16_rows.data() + begin, w + begin, DType::kBF16, end - begin);
    });
  } else if ((forms & kRows) != 0 && (rounding_ != Rounding::kNone || apart)) {
    e.f32.assign(w, w + count);
  }
  if ((forms & (kPacked | kTransposed)) == 0) return;
  const int64_t N = decoder_.weights[i].shape[0], K = decoder_.weights[i].shape[1];
  if ((forms & kPacked) != 0 && e.packed.empty()) {
    e.packed = kernels::PackedWeight::pack_from_f32(compute_, w, N, K, pool_);
  } else if ((forms & kPacked) != 0) {
    e.packed.repack_from_f32(w, pool_);
  }
  if ((forms & kTransposed) != 0 && e.transposed.empty()) {
    e.transposed = kernels::PackedWeight::pack_transposed_from_f32(compute_, w, N, K, pool_);
  } else if ((forms & kTransposed) != 0) {
    e.transposed.repack_transposed_from_f32(w, pool_);
  }
}

// Rows are these values themselves.
void Parameters::make_from_bf16(size_t i, Forms forms, const uint16_t* w) {
  Entry& e = entries_[i];
  CHECK((forms & kValues) == 0, "{} is read in f32, and kept in bf16", e.place.name);
  e.made |= forms;
  const int64_t N = decoder_.weights[i].shape[0], K = decoder_.weights[i].shape[1];
  if ((forms & kPacked) != 0 && e.packed.empty()) {
    e.packed = kernels::PackedWeight::pack(DType::kBF16, w, N, K, pool_);
  } else if ((forms & kPacked) != 0) {
    e.packed.repack_from_bf16(w, pool_);
  }
  if ((forms & kTransposed) != 0 && e.transposed.empty()) {
    e.transposed = kernels::PackedWeight::pack_transposed(DType::kBF16, w, N, K, pool_);
  } else if ((forms & kTransposed) != 0) {
    e.transposed.repack_transposed_from_bf16(w, pool_);
  }
}

const float* Parameters::round(size_t i, const float* w) {
  const FlatWeight& place = entries_[i].place;
  const bool fp8 = entries_[i].linear && rounding_ != Rounding::kF16;
  if (!fp8 && (rounding_ != Rounding::kF16 || !place.matrix)) return w;
  rounded_.resize(std::max(rounded_.size(), static_cast<size_t>(place.count)));
  if (fp8) {
    const std::vector<int64_t>& shape = decoder_.weights[i].shape;
    kernels::round_fp8(rounded_.data(), w, shape[0], shape[1],
                       rounding_ == Rounding::kFp8Blocks ? kernels::kFp8Squares : kernels::kFp8Tensor,
                       kernels::Fp8Format::kE4M3, pool_);
  } else {
    kernels::round_to(rounded_.data(), w, DType::kF16, place.count, pool_);
  }
  return rounded_.data();
}

}  // namespace flywheel::train
