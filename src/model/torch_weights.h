// Weights that torch.save wrote: a .pt, .bin or .pth file, or a folder of Hugging Face's layout with
// pytorch_model.bin or its shards. Nothing of the files is run (pickle.h).
//
// Tensors of dtypes that no layer computes with are named but not listed. Ownership, threads, errors:
// weights.h.
//
//   ASSIGN_OR_RETURN(auto source, open_torch_weights("model_folder"));
#pragma once

#include <memory>
#include <string>

#include "model/weights.h"

namespace flywheel::model {

inline constexpr const char* kTorchSingleName = "pytorch_model.bin";
inline constexpr const char* kTorchIndexName = "pytorch_model.bin.index.json";

// Whether a file's name says that torch.save wrote it.
bool is_torch_file_name(const std::string& path);

Result<std::unique_ptr<WeightSource>> open_torch_weights(const std::string& path);

}  // namespace flywheel::model
