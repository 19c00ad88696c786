// Numbers in files: unsigned, the lowest byte first, of any width up to 8.
//
//   const uint64_t size = little_endian(bytes.substr(8, 4));
#pragma once

#include <cstdint>
#include <string_view>

namespace flywheel::model {

// `above`: what stands in the bytes that are not there; ~0 for a negative number.
inline uint64_t little_endian(std::string_view bytes, uint64_t above = 0) {
  uint64_t value = above;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

}  // namespace flywheel::model
