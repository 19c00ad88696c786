// What the products of a linear see of their factors in a precision that is computed in f32: values rounded
// to fp16 or fp8. Hardware with such products would compute the same, up to the order of its sums.
//
//   RETURN_IF_ERROR(check_rounding(rounding_of(config), local));
#pragma once

#include <cstdint>

#include "base/result.h"
#include "kernels/dtype.h"
#include "train/config.h"
#include "train/local_decoder.h"

namespace flywheel::train {

// kF16: all matrices, and forward and back what they multiply. kFp8 (blocks of 128 x 128 weights and 1 x 128
// values, or a scale for each tensor): E4M3 forward, E5M2 for gradients of values; embedding and logits are
// left alone (DeepSeek-V3, 2024).
enum class Rounding : uint8_t { kNone, kF16, kFp8Blocks, kFp8Tensors };

Rounding rounding_of(const TrainConfig& config);
// In which such factors lie in memory, and products are computed.
kernels::DType compute_dtype(Precision precision);

// Errors: kInvalid where the tensor axis cuts a matrix so that a scale of fp8 would be another than that of
// the whole; names the key and the matrix.
Result<void> check_rounding(Rounding rounding, const LocalDecoder& local);

}  // namespace flywheel::train
