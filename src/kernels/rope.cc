#include "kernels/rope.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {

RopeTable::RopeTable(const std::vector<float>& inv_frequency, int64_t max_positions, float scale)
    : half_(static_cast<int64_t>(inv_frequency.size())), max_positions_(max_positions) {
  CHECK(half_ > 0 && max_positions > 0, "a rope table of {} x {}", max_positions, half_);
  values_.resize(static_cast<size_t>(max_positions * 2 * half_));
  for (int64_t p = 0; p < max_positions; ++p) {
    float* row = values_.data() + p * 2 * half_;
    for (int64_t i = 0; i < half_; ++i) {
      const double angle = static_cast<float>(p) * inv_frequency[static_cast<size_t>(i)];
      row[i] = static_cast<float>(std::cos(angle)) * scale;
      row[half_ + i] = static_cast<float>(std::sin(angle)) * scale;
    }
  }
}

void rope(float* x_THD, const int32_t* positions_T, const RopeTable& table_of_angles, int64_t T, int64_t H,
          int64_t D, Rotation rotation, ThreadPool& pool) {
  CHECK(2 * table_of_angles.half() <= D, "{} rotated dimensions of {}", 2 * table_of_angles.half(), D);
  const auto head = table().rope_head;
  const float sign = rotation == Rotation::kForward ? 1.0f : -1.0f;
  pool.parallel_for(T, std::max<int64_t>(1, 16384 / (H * D)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      CHECK(positions_T[t] >= 0 && positions_T[t] < table_of_angles.max_positions(), "position {} of {}",
            positions_T[t], table_of_angles.max_positions());
      const float *cos = table_of_angles.cos_row(positions_T[t]),
                  *sin = table_of_angles.sin_row(positions_T[t]);
      for (int64_t h = 0; h < H; ++h) head(x_THD + (t * H + h) * D, cos, sin, table_of_angles.half(), sign);
    }
  });
}

}  // namespace flywheel::kernels
