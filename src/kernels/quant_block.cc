#include "kernels/quant_block_internal.h"

#include <cstring>

#include "base/check.h"
#include "kernels/quant.h"

namespace flywheel::kernels {
namespace {

uint16_t load_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
uint16_t negated(uint16_t f16) {
  return f16 ^ 0x8000;
}

// 32 elements: the low nibbles are the first half, the high ones the second.
void read_nibbles(int8_t* q, const uint8_t* bytes, int subtract) {
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int8_t>((bytes[i] & 15) - subtract);
    q[i + 16] = static_cast<int8_t>((bytes[i] >> 4) - subtract);
  }
}

// The fifth bits of 32 elements, one each.
void add_fifth_bits(int8_t* q, const uint8_t* bits) {
  for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(q[i] + ((bits[i / 8] >> (i % 8) & 1) << 4));
}

void read_q8_0(QuantBlock& b, const uint8_t* p) {
  b.d = load_u16(p);
  std::memcpy(b.q, p + 2, 32);
}

// The 8 scales and 8 minimums of Q4_K and Q5_K: 6 bits each in 12 bytes.
void read_six_bit_scales(QuantBlock& b, const uint8_t* p) {
  for (int i = 0; i < 4; ++i) {
    b.scale[i] = static_cast<int8_t>(p[i] & 63);
    b.min[i] = static_cast<int8_t>(p[i + 4] & 63);
    b.scale[i + 4] = static_cast<int8_t>((p[i + 8] & 15) | (p[i] >> 6 << 4));
    b.min[i + 4] = static_cast<int8_t>((p[i + 8] >> 4) | (p[i + 4] >> 6 << 4));
  }
}

// 64 elements in 32 bytes: the low nibbles, then the high ones; four times.
void read_k_nibbles(QuantBlock& b, const uint8_t* qs) {
  for (int e = 0; e < 256; ++e)
    b.q[e] = static_cast<int8_t>(qs[e / 64 * 32 + e % 32] >> (e / 32 % 2 * 4) & 15);
}

// 128 elements in 32 bytes, 2 bits each: bits 0-1 of all bytes first; twice.
int two_bits(const uint8_t* qs, int e) {
  return qs[e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3;
}

void read_q2_k(QuantBlock& b, const uint8_t* p) {
  for (int s = 0; s < 16; ++s) {
    b.scale[s] = static_cast<int8_t>(p[s] & 15);
    b.min[s] = static_cast<int8_t>(p[s] >> 4);
  }
  for (int e = 0; e < 256; ++e) b.q[e] = static_cast<int8_t>(two_bits(p + 16, e));
  b.d = load_u16(p + 80);
  b.dmin = negated(load_u16(p + 82));
}

void read_q3_k(QuantBlock& b, const uint8_t* p) {
  const uint8_t *high_bits = p, *qs = p + 32, *scales = p + 96;
  for (int e = 0; e < 256; ++e) {
    const int high = high_bits[e % 32] >> (e / 32) & 1;
    b.q[e] = static_cast<int8_t>(two_bits(qs, e) - (high != 0 ? 0 : 4));
  }
  for (int s = 0; s < 16; ++s) {
    const int low = scales[s % 8] >> (s / 8 * 4) & 15, high = scales[8 + s % 4] >> (s / 4 * 2) & 3;
    b.scale[s] = static_cast<int8_t>((low | high << 4) - 32);
  }
  b.d = load_u16(p + 108);
}

void read_q6_k(QuantBlock& b, const uint8_t* p) {
  const uint8_t *low = p, *high = p + 128;
  for (int e = 0; e < 256; ++e) {
    const int nibble = low[e / 128 * 64 + e % 64] >> (e / 64 % 2 * 4) & 15;
    b.q[e] = static_cast<int8_t>((nibble | two_bits(high, e) << 4) - 32);
  }
  std::memcpy(b.scale, p + 192, 16);
  b.d = load_u16(p + 208);
}

}  // namespace

const QuantFormat& quant_format(DType dtype) {
  const int index = static_cast<int>(dtype) - static_cast<int>(kFirstQuantized);
  CHECK(index >= 0 && index < kQuantTypes, "{} is not quantized", dtype_name(dtype));
  return kQuantFormats[index];
}

void read_quant_block(QuantBlock& b, DType dtype, const uint8_t* p) {
  std::memset(b.scale, 1, sizeof b.scale);
  std::memset(b.min, 1, sizeof b.min);
  b.d = load_u16(p);
  b.dmin = 0;
  switch (dtype) {
    case DType::kQ4_0:
      return read_nibbles(b.q, p + 2, 8);
    case DType::kQ4_1:
      b.dmin = load_u16(p + 2);
      return read_nibbles(b.q, p + 4, 0);
    case DType::kQ5_0:
      read_nibbles(b.q, p + 6, 16);
      return add_fifth_bits(b.q, p + 2);
    case DType::kQ5_1:
      b.dmin = load_u16(p + 2);
      read_nibbles(b.q, p + 8, 0);
      return add_fifth_bits(b.q, p + 4);
    case DType::kQ8_0:
      return read_q8_0(b, p);
    case DType::kQ2_K:
      return read_q2_k(b, p);
    case DType::kQ3_K:
      return read_q3_k(b, p);
    case DType::kQ4_K:
    case DType::kQ5_K:
      b.dmin = negated(load_u16(p + 2));
      read_six_bit_scales(b, p + 4);
      read_k_nibbles(b, p + (dtype == DType::kQ4_K ? 16 : 48));
      if (dtype == DType::kQ5_K) {
        for (int e = 0; e < 256; ++e)
          b.q[e] = static_cast<int8_t>(b.q[e] | (p[16 + e % 32] >> (e / 32) & 1) << 4);
      }
      return;
    case DType::kQ6_K:
      return read_q6_k(b, p);
    default:
      CHECK(false, "{} is not quantized", dtype_name(dtype));
  }
}

void dequantize_row(float* out_K, DType dtype, const void* row, int64_t K) {
  const QuantFormat format = quant_format(dtype);
  const int64_t elements = block_elements(dtype), bytes = block_bytes(dtype);
  CHECK(K % elements == 0, "a row of {} is not whole {} blocks", K, dtype_name(dtype));
  const auto* block = static_cast<const uint8_t*>(row);
  QuantBlock b;
  for (int64_t k = 0; k < K; k += elements, block += bytes) {
    read_quant_block(b, dtype, block);
    const float d = from_f16(b.d), dmin = from_f16(b.dmin);
    for (int64_t e = 0; e < elements; ++e) {
      const int64_t s = e / format.sub_elements;
      out_K[k + e] = d * static_cast<float>(b.scale[s]) * static_cast<float>(b.q[e]) +
                     dmin * static_cast<float>(b.min[s]);
    }
  }
}

}  // namespace flywheel::kernels
