// AdamW with both moments in 8 bits (Dettmers et al. 2022): blocks of 256 values share a scale, their largest
// magnitude, and a value is one of 256 codes that lie closer together toward 0 (dynamic quantization). The
// update itself is in f32 from the new moments; 2.03 bytes of state a weight instead of 8.
//
// Blocks count from the first value, so a part may begin only at a multiple of kAdamWBlock.
// Buffers of zeros are zero moments.
//
//   adamw_8bit(w, m_codes, m_scales, v_codes, v_scales, gradients, n, step, pool);   // scales: n / 256, up
#pragma once

#include <array>
#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/adamw.h"

namespace flywheel::kernels {

inline constexpr int64_t kAdamWBlock = 256;

// What the codes stand for, ascending: of values in [-1, 1] or [0, 1].
enum class DynamicCode { kSigned, kUnsigned };
const std::array<float, 256>& dynamic_values(DynamicCode code);
// The nearest code; the lower of two.
uint8_t dynamic_code(DynamicCode code, float value);

void adamw_8bit(float* weights, uint8_t* m, float* m_scales, uint8_t* v, float* v_scales,
                const float* gradients, int64_t n, const AdamWStep& step, ThreadPool& pool);

}  // namespace flywheel::kernels
