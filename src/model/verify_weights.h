// Whether the files of a model or checkpoint are what was written: their own checksums, and that they fit
// together.
//
// safetensors that we wrote have a CRC32C, files of torch a CRC-32 for each tensor's storage (so DCP and
// DeepSpeed have them too), trainer.state a CRC32C; GGUF and safetensors of others have none, which the
// report says. Artifacts of the store have SHA-256s besides (Store::path_of).
//
// Threads: any. Errors: only where there is nothing to look at (kNotFound, kInvalid); what is wrong is in the
// report.
//
//   ASSIGN_OR_RETURN(const WeightsReport report, verify_weights("step-00000100"));
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/weights.h"

namespace flywheel::model {

struct WeightsReport {
  WeightFormat format = WeightFormat::kSafetensors;
  int64_t files_checked = 0, tensors = 0;
  uint64_t bytes_checked = 0;
  std::vector<std::string> problems;   // file and what is wrong with it
  std::vector<std::string> unchecked;  // files without a checksum
};

Result<WeightsReport> verify_weights(const std::string& path);

}  // namespace flywheel::model
