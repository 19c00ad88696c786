// One GGUF block of any quantized type, taken apart: the only place that knows how the formats lie in bytes.
//
// Every type is the same function of its parts. For element e in sub-block s = e / sub_elements:
//   value = (d * scale[s]) * q[e] + dmin * min[s]
// with d and dmin in f16 and small integers for the rest (1 where a type has none). K-types subtract their
// minimum: dmin is negated here.
// Source: the formats as the ggml project defines them (ggml-common.h); checked against its numpy
// dequantizers by tests/quant_formats.py.
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
  int sub_elements;  // that share a scale: 16 or 32
  int lowest_q;      // q is in [lowest_q, lowest_q + 2^bits)
  int bits;          // of the packed form: 4, 6 or 8
  bool has_min;
  bool has_sub_scales;  // K-types: scale[] (and min[] with has_min) differ from 1
};

QuantFormat quant_format(DType dtype);
void read_quant_block(QuantBlock& out, DType dtype, const uint8_t* block);

}  // namespace flywheel::kernels
