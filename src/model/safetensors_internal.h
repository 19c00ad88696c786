// Shared by the reader, the writer and the folder of safetensors.h.
#pragma once

#include "kernels/dtype.h"

namespace flywheel::model {

// Metadata key: CRC32C of all bytes after the header, 8 hex digits.
inline constexpr const char* kSafetensorsChecksumKey = "flywheel.crc32c";
inline constexpr const char* kSafetensorsSingleName = "model.safetensors";
inline constexpr const char* kSafetensorsIndexName = "model.safetensors.index.json";

// "F32", "F16" or "BF16"; nullptr for what the format has no word for.
const char* safetensors_dtype_name(kernels::DType dtype);

}  // namespace flywheel::model
