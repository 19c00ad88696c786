// sources: src/model/safetensors.cc src/kernels/dtype.cc
// safetensors: whatever the bytes, parsing ends with a value or an error, and every tensor lies inside the
// file.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using flywheel::model::SafetensorsFile;
  const auto file = SafetensorsFile::parse({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!file.ok()) return 0;
  (void)file->verify().ok();
  for (const auto& entry : file->entries()) {
    if (entry.bytes.data() + entry.bytes.size() > data + size) std::abort();
    (void)file->tensor(entry.name).ok();
  }
  return 0;
}
