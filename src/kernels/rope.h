// Rotary position embedding (Su et al. 2021), Hugging Face's half-split order: dimension i turns with i +
// R/2, where R is the number of rotated dimensions of a head (the first R of D; usually all).
//
// Ownership: RopeTable holds cos and sin for every position up to its maximum; make one per model.
//
//   RopeTable table(inv_frequency, max_positions);      // R = 2 * inv_frequency.size()
//   rope(q, positions, table, T, heads, head_dim, Rotation::kForward, pool);    // in place
//   rope(dq, positions, table, T, heads, head_dim, Rotation::kBackward, pool);  // its gradient
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace flywheel::kernels {

class RopeTable {
 public:
  // Angle = position * inv_frequency[i] in f32, as the models were trained; `scale` multiplies cos and sin.
  RopeTable(const std::vector<float>& inv_frequency, int64_t max_positions, float scale = 1.0f);
  int64_t max_positions() const { return max_positions_; }
  int64_t half() const { return half_; }  // R / 2
  const float* cos_row(int64_t position) const { return values_.data() + position * 2 * half_; }
  const float* sin_row(int64_t position) const { return cos_row(position) + half_; }

 private:
  int64_t half_, max_positions_;
  std::vector<float> values_;
};

enum class Rotation { kForward, kBackward };

// x_THD in place; positions_T[t] < table.max_positions().
void rope(float* x_THD, const int32_t* positions_T, const RopeTable& table, int64_t T, int64_t H, int64_t D,
          Rotation rotation, ThreadPool& pool);

}  // namespace flywheel::kernels
