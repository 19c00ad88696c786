#include "kernels/dtype.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"

namespace flywheel::kernels {
namespace {

struct DTypeInfo {
  const char* name;
  int64_t elements, bytes;
};

// In the order of the enum. Sizes of the quantized blocks: the GGUF format's.
constexpr DTypeInfo kInfo[] = {
    {"f32", 1, 4},      {"f16", 1, 2},      {"bf16", 1, 2},     {"q4_0", 32, 18},  {"q4_1", 32, 20},
    {"q5_0", 32, 22},   {"q5_1", 32, 24},   {"q8_0", 32, 34},   {"q2_k", 256, 84}, {"q3_k", 256, 110},
    {"q4_k", 256, 144}, {"q5_k", 256, 176}, {"q6_k", 256, 210},
};

const DTypeInfo& info(DType dtype) {
  const auto index = static_cast<size_t>(dtype);
  CHECK(index < std::size(kInfo), "no dtype {}", index);
  return kInfo[index];
}

}  // namespace

const char* dtype_name(DType dtype) {
  return info(dtype).name;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (size_t i = 0; i < std::size(kInfo); ++i) {
    if (name == kInfo[i].name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

int64_t block_elements(DType dtype) {
  return info(dtype).elements;
}
int64_t block_bytes(DType dtype) {
  return info(dtype).bytes;
}

int64_t row_bytes(DType dtype, int64_t K) {
  const DTypeInfo& i = info(dtype);
  CHECK(K % i.elements == 0, "a row of {} elements is not whole {} blocks of {}", K, i.name, i.elements);
  return K / i.elements * i.bytes;
}

float from_f16(uint16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000) << 16;
  const uint32_t magnitude = value & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);  // infinity, NaN
  // Shifted into f32's place the exponent is 112 too small; multiplying mends normals and subnormals alike.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}

uint16_t to_f16(float value) {
  const uint32_t bits = bits_of(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | static_cast<uint16_t>((magnitude >> 13) & 0x1ff);
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds past 65504
  if (magnitude < 0x38800000) {
    // Subnormal in f16: adding 0.5 makes the hardware round at f16's last place (2^-24).
    return sign | static_cast<uint16_t>(bits_of(float_of(magnitude) + 0.5f) - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13);
}

void to_f32(float* out, const void* in, DType dtype, int64_t n) {
  CHECK(!is_quantized(dtype), "to_f32 of {}", dtype_name(dtype));
  const auto* half = static_cast<const uint16_t*>(in);
  switch (dtype) {
    case DType::kF32:
      std::copy_n(static_cast<const float*>(in), n, out);
      break;
    case DType::kBF16:
      std::transform(half, half + n, out, from_bf16);
      break;
    default:
      std::transform(half, half + n, out, from_f16);
      break;
  }
}

void from_f32(void* out, const float* in, DType dtype, int64_t n) {
  CHECK(!is_quantized(dtype), "from_f32 to {}", dtype_name(dtype));
  auto* half = static_cast<uint16_t*>(out);
  switch (dtype) {
    case DType::kF32:
      std::copy_n(in, n, static_cast<float*>(out));
      break;
    case DType::kBF16:
      std::transform(in, in + n, half, to_bf16);
      break;
    default:
      std::transform(in, in + n, half, to_f16);
      break;
  }
}

}  // namespace flywheel::kernels
