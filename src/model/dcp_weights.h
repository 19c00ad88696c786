// Weights in a folder of torch.distributed.checkpoint (DCP): `.metadata`, a pickle that says which piece of
// which tensor lies where, and `__RANK_N.distcp`, the pieces, each a file of torch.save of its own. Nothing
// of the files is run (pickle.h). Layout by torch's torch/distributed/checkpoint/metadata.py and
// filesystem.py; docs/formats/dcp.md.
//
// All pieces of a tensor must be there, whatever mesh wrote them. Optimizer state, numbers and pickled
// objects beside the weights are read over. Ownership, threads, errors: weights.h.
//
//   ASSIGN_OR_RETURN(auto source, open_dcp_weights("run/step_100"));
#pragma once

#include <memory>
#include <string>

#include "model/weights.h"

namespace flywheel::model {

inline constexpr const char* kDcpMetadataName = ".metadata";

Result<std::unique_ptr<WeightSource>> open_dcp_weights(const std::string& folder);

}  // namespace flywheel::model
