// Shared by the reader, the writer and the folder of safetensors.h.
#pragma once

#include <map>
#include <set>
#include <string>

#include "base/result.h"
#include "kernels/dtype.h"

namespace flywheel::model {

// Metadata key: CRC32C of all bytes after the header, 8 hex digits.
inline constexpr const char* kSafetensorsChecksumKey = "flywheel.crc32c";
inline constexpr const char* kSafetensorsSingleName = "model.safetensors";
inline constexpr const char* kSafetensorsIndexName = "model.safetensors.index.json";

// "F32", "F16" or "BF16"; nullptr for what the format has no word for.
const char* safetensors_dtype_name(kernels::DType dtype);

// Of an index of shards (torch's has the same form): the shard's name -> the names of its tensors.
Result<std::map<std::string, std::set<std::string>>> read_shard_index(const std::string& path);

}  // namespace flywheel::model
