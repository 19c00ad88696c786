// What a person names as a checkpoint: a path, an artifact of the store, or a run.
//
// Errors: UserError, saying what there is.
#pragma once

#include <string>
#include <vector>

#include "store/store.h"

namespace flywheel::cli {

struct CheckpointRef {
  std::string path;      // of the file or folder
  std::string artifact;  // "tiny-checkpoint:3"; "" for a path
};

// A run stands for its newest checkpoint, or for the model that it made where it has none.
CheckpointRef find_checkpoint(const std::string& name);

}  // namespace flywheel::cli
