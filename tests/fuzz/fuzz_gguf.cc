// sources: src/model/gguf.cc src/kernels/dtype.cc
// GGUF: whatever the bytes, parsing ends with a value or an error, and every tensor lies inside the file.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using flywheel::model::GgufFile;
  const auto file = GgufFile::parse({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!file.ok()) return 0;
  for (const auto& [key, value] : file->metadata()) {
    (void)file->strings(key).ok();
    (void)file->integers(key).ok();
    (void)file->floats(key).ok();
  }
  for (const auto& tensor : file->tensors()) {
    if (tensor.bytes.data() + tensor.bytes.size() > data + size) std::abort();
  }
  return 0;
}
