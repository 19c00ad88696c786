// Shared by the readers of torch's files: torch_weights.cc, dcp_weights.cc, deepspeed_weights.cc.
#pragma once

#include <string>

#include "model/gathered_weights.h"
#include "model/torch_file.h"

namespace flywheel::model {

// A view of a storage of `file`, which `weights` keeps, as a weight.
void add_torch_tensor(GatheredWeights& weights, const std::string& name, const TorchFile& file,
                      const TorchTensor& tensor);

}  // namespace flywheel::model
