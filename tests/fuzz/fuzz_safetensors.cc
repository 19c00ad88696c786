// safetensors: whatever the bytes, parsing ends with a value or an error, and every tensor lies inside the
// file.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "fuzzer.h"
#include "model/safetensors.h"

namespace {

std::vector<std::string> seeds() {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
      R"("b.weight":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}})";
  std::string length(8, '\0');
  length[0] = static_cast<char>(header.size());
  return {length + header + std::string(14, '\x3F')};
}

void run(std::string_view input) {
  using flywheel::model::SafetensorsFile;
  const auto file = SafetensorsFile::parse(input, "fuzz");
  if (!file.ok()) return;
  (void)file->verify().ok();
  const auto* end = reinterpret_cast<const uint8_t*>(input.data() + input.size());
  for (const auto& entry : file->entries()) {
    CHECK(entry.bytes.data() + entry.bytes.size() <= end, "{} ends behind the file", entry.name);
    (void)file->tensor(entry.name).ok();
  }
}

const FuzzerRegistration registration("safetensors", seeds, run);

}  // namespace
