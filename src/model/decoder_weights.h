// A decoder's weights, found in a WeightSource under their names and packed for the kernels.
//
// Matrices are packed in the dtype that they have in the file, or rounded to `dtype` where that is asked;
// norms and biases become f32. The embedding table is read where it lies, as in the file.
//
// Ownership: keeps the source alive. Threads: immutable after loading.
// Errors: kNotFound for a weight that the source lacks, kInvalid for one of another shape, naming both.
//
//   ASSIGN_OR_RETURN(auto weights, load_decoder_weights(decoder, source, {}, pool));
//   kernels::linear(y, x, weights.matrices[step.weight], T, pool);
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"
#include "kernels/linear.h"
#include "model/decoder.h"
#include "model/weights.h"

namespace flywheel::model {

struct LoadOptions {
  std::optional<kernels::DType> dtype;  // f32, f16 or bf16: compute in this one, whatever the file has
};

struct DecoderWeights {
  // Both by index into Decoder::weights; a matrix has an empty vector and the other way round. The
  // embedding is packed only where it is also the output matrix.
  std::vector<kernels::PackedWeight> matrices;
  std::vector<std::vector<float>> vectors;
  Tensor embedding;
  kernels::DType dtype;  // of the first linear: what the model "is in"
  std::shared_ptr<const WeightSource> source;
  std::vector<uint8_t> aligned_embedding;  // a copy, only where the file's is not aligned to its elements
};

Result<DecoderWeights> load_decoder_weights(const Decoder& decoder,
                                            std::shared_ptr<const WeightSource> source,
                                            const LoadOptions& options, ThreadPool& pool);

}  // namespace flywheel::model
