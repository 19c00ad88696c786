// What a run's weights begin with: numbers that are drawn, or those of a model.
//
// Drawn: of an adapter, A uniform in +-1 / sqrt(columns), as PEFT has it (Kaiming, He et al. 2015, with a =
// sqrt(5)), B 0. Of others: normal with standard deviation 0.02, that of the matrices which write to the
// residual stream divided by sqrt(2 * layers) (Radford et al. 2019); norms 1, biases 0. A pure function of
// the seed: every rank draws the whole matrix and keeps its part, so that the mesh does not change the model.
//
// Ownership: borrows the decoder. Threads: any.
//
//   const InitialWeights initial(local, seed);
//   const std::vector<float> values = initial.draw(place);
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "model/weights.h"
#include "train/flat_weights.h"
#include "train/local_decoder.h"

namespace flywheel::train {

class InitialWeights {
 public:
  InitialWeights(const LocalDecoder& decoder, uint64_t seed);
  // All values of the weight that `place` is of, which is not frozen.
  std::vector<float> draw(const FlatWeight& place) const;

 private:
  const LocalDecoder& decoder_;
  uint64_t seed_;
  std::vector<bool> residual_;  // matrices whose output is added to the residual stream
  double shrink_;
};

// A model's tensor for a weight. kNotFound: it has none; kInvalid: in another shape.
Result<model::Tensor> find_tensor(const model::WeightSource& source, const FlatWeight& weight);

}  // namespace flywheel::train
