// Element types of weights and caches, their sizes, and conversion of single values.
//
// Quantized types are the GGUF ones: a row of K elements is K / block_elements() blocks of block_bytes().
// bf16 and f16 travel as uint16_t; conversions round to nearest even, as the hardware does.
//
//   row_bytes(DType::kQ4_0, 4096);          // 2304
//   uint16_t b = to_bf16(0.1f);  float f = from_bf16(b);
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

namespace flywheel::kernels {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

// "f32", "bf16", "q4_k", ...
const char* dtype_name(DType dtype);
std::optional<DType> dtype_from_name(std::string_view name);

// Elements that share one block (1 for the float types) and its bytes.
int64_t block_elements(DType dtype);
int64_t block_bytes(DType dtype);
// Bytes of a row of K elements; K must be a multiple of block_elements().
int64_t row_bytes(DType dtype, int64_t K);
inline bool is_quantized(DType dtype) {
  return dtype >= DType::kQ4_0;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float from_bf16(uint16_t value) {
  return float_of(static_cast<uint32_t>(value) << 16);
}
inline uint16_t to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);  // a quiet NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float from_f16(uint16_t value);
uint16_t to_f16(float value);

// n values of any float dtype to or from f32. Threads: the caller's.
void to_f32(float* out, const void* in, DType dtype, int64_t n);
void from_f32(void* out, const float* in, DType dtype, int64_t n);

}  // namespace flywheel::kernels
