// One GGUF block of any quantized type, taken apart: the only place that knows how the formats lie in bytes.
//
// Every type is the same function of its parts. For element e in sub-block s = e / sub_elements:
//   value = (d * scale[s]) * q[e] + dmin * min[s]
// with d and dmin in f16 and small integers for the rest (1 where a type has none). K-types subtract their
// minimum: dmin is negated here.
// Source: the formats as the ggml project defines them (ggml-common.h); testdata/quant_golden.txt holds
// values that its own package computed.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace flywheel::kernels {

struct QuantBlock {
  int8_t q[256];
  int8_t scale[16];
  int8_t min[16];
  uint16_t d, dmin;  // f16
};

// What is the same in all blocks of a type.
struct QuantFormat {
  int elements;      // of a block: 32, or 256 in K-types
  int sub_elements;  // that share a scale: 16 or 32
  int lowest_q;      // q - lowest_q is in [0, 2^bits)
  int bits;          // of an element in packed form: 4, 6 or 8
  bool has_min;
  bool has_sub_scales;  // K-types: scale[] (and min[] with has_min) differ from 1
};

inline constexpr DType kFirstQuantized = DType::kQ4_0;
inline constexpr int kQuantTypes = 10;
// In the order of DType, from kFirstQuantized.
inline constexpr QuantFormat kQuantFormats[kQuantTypes] = {
    {32, 32, -8, 4, false, false},    // Q4_0
    {32, 32, 0, 4, true, false},      // Q4_1
    {32, 32, -16, 8, false, false},   // Q5_0
    {32, 32, 0, 8, true, false},      // Q5_1
    {32, 32, -128, 8, false, false},  // Q8_0
    {256, 16, 0, 4, true, true},      // Q2_K
    {256, 16, -4, 4, false, true},    // Q3_K
    {256, 32, 0, 4, true, true},      // Q4_K
    {256, 32, 0, 8, true, true},      // Q5_K
    {256, 16, -32, 6, false, true},   // Q6_K
};
// Aborts for a float type.
const QuantFormat& quant_format(DType dtype);

void read_quant_block(QuantBlock& out, DType dtype, const uint8_t* block);

}  // namespace flywheel::kernels
