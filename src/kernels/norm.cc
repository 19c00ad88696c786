#include "kernels/norm.h"

#include <algorithm>
#include <cstring>

#include "kernels/scratch_internal.h"
#include "kernels/table_internal.h"

namespace flywheel::kernels {
namespace {
constexpr int64_t kRowsOfPartial = 64;  // rows whose dweight is summed apart, then added in order
}

void rms_norm(float* y_TD, const float* x_TD, const float* weight_D, int64_t T, int64_t D, float epsilon,
              ThreadPool& pool) {
  const auto row = table().rms_norm_row;
  pool.parallel_for(T, std::max<int64_t>(1, 16384 / D), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) row(y_TD + t * D, x_TD + t * D, weight_D, D, epsilon);
  });
}

void rms_norm_backward(float* dx_TD, float* dweight_D, const float* dy_TD, const float* x_TD,
                       const float* weight_D, int64_t T, int64_t D, float epsilon, ThreadPool& pool) {
  const Table& kernels = table();
  const int64_t pieces = (T + kRowsOfPartial - 1) / kRowsOfPartial;
  auto* partial = scratch<float>(Scratch::kPartialSums, pieces * D);
  std::memset(partial, 0, static_cast<size_t>(pieces * D) * sizeof(float));
  pool.parallel_for(T, kRowsOfPartial, [&](int64_t begin, int64_t end) {
    float* dweight = partial + begin / kRowsOfPartial * D;
    for (int64_t t = begin; t < end; ++t) {
      kernels.rms_norm_backward_row(dx_TD + t * D, dweight, dy_TD + t * D, x_TD + t * D, weight_D, D,
                                    epsilon);
    }
  });
  for (int64_t piece = 0; piece < pieces; ++piece) kernels.add(dweight_D, dweight_D, partial + piece * D, D);
}

}  // namespace flywheel::kernels
