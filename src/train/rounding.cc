#include "train/rounding.h"

#include "kernels/fp8.h"
#include "train/flat_weights.h"

namespace flywheel::train {

Rounding rounding_of(const TrainConfig& config) {
  if (config.precision == Precision::kFP16) return Rounding::kF16;
  if (config.precision != Precision::kFP8) return Rounding::kNone;
  return config.fp8_scales == Fp8Scales::kBlocks ? Rounding::kFp8Blocks : Rounding::kFp8Tensors;
}

kernels::DType compute_dtype(Precision precision) {
  return precision == Precision::kBF16 ? kernels::DType::kBF16 : kernels::DType::kF32;
}

namespace {

Result<void> check_weight(Rounding rounding, const FlatWeight& weight) {
  if (!weight.part.has_value()) return {};
  if (rounding == Rounding::kFp8Tensors) {
    return make_error(ErrorCode::kInvalid,
                      "fp8_scales: tensors: a rank of mesh.tensor does not see the whole of a tensor; use "
                      "fp8_scales: blocks");
  }
  const auto between = [](int64_t at, int64_t end) {
    return at % kernels::kFp8Squares.rows == 0 || at == end;
  };
  const FlatWeight::Part& p = *weight.part;
  const int64_t rows = weight.shape[0], columns = weight.shape[1];
  if (between(p.row_begin, rows) && between(p.row_end, rows) && between(p.column_begin, columns) &&
      between(p.column_end, columns)) {
    return {};
  }
  return make_error(ErrorCode::kInvalid,
                    "mesh.tensor: cuts {} [{}, {}] inside a block of {} x {} that shares a scale in fp8; use "
                    "fewer tensor ranks, or another precision",
                    weight.name, rows, columns, kernels::kFp8Squares.rows, kernels::kFp8Squares.columns);
}

}  // namespace

Result<void> check_rounding(Rounding rounding, const LocalDecoder& local) {
  if (rounding != Rounding::kFp8Blocks && rounding != Rounding::kFp8Tensors) return {};
  const std::vector<FlatWeight> weights = flat_weights(local);
  for (const LocalStep& step : local.steps) {
    const bool computes = step.exchange == Exchange::kNone && !step.bias_alone;
    if (computes && step.op == model::Op::kLinear)
      RETURN_IF_ERROR(check_weight(rounding, weights[static_cast<size_t>(step.weight)]));
    for (const model::ExpertWeights& expert : step.experts) {
      for (const int weight : {expert.gate, expert.up, expert.down})
        RETURN_IF_ERROR(check_weight(rounding, weights[static_cast<size_t>(weight)]));
    }
  }
  return {};
}

}  // namespace flywheel::train
