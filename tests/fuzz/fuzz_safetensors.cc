// safetensors: whatever the bytes, parsing ends with a value or an error, and every tensor lies inside the
// file.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "model/safetensors.h"
#include "seeds.h"

std::vector<std::string> seeds() {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
      R"("b.weight":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}})";
  std::string length(8, '\0');
  length[0] = static_cast<char>(header.size());
  return {length + header + std::string(14, '\x3F')};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using flywheel::model::SafetensorsFile;
  const auto file = SafetensorsFile::parse({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!file.ok()) return 0;
  (void)file->verify().ok();
  for (const auto& entry : file->entries()) {
    CHECK(entry.bytes.data() + entry.bytes.size() <= data + size, "{} ends behind the file", entry.name);
    (void)file->tensor(entry.name).ok();
  }
  return 0;
}
