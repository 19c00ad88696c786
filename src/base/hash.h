// CRC32C for records, SHA-256 for names of content, xxHash for tables and near-duplicate signatures.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace flywheel {

// CRC32C (Castagnoli) of `bytes`, continuing from `crc` (0 to begin).
uint32_t crc32c(std::string_view bytes, uint32_t crc = 0);

// xxHash3, 64 bits.
uint64_t xxh64(std::string_view bytes, uint64_t seed = 0);

// SHA-256 over pieces.
//   Sha256 sha; sha.update(a); sha.update(b); std::string hex = sha.hex();
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void update(std::string_view bytes);
  // 64 lower-case hex digits. Call once, last.
  std::string hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::string_view bytes);
// SHA-1 only to compare with names that others made (git objects); it does not resist forgery.
std::string sha1_hex(std::string_view bytes);
Result<std::string> sha256_file(const std::string& path);

}  // namespace flywheel
