#include "kernels/swiglu.h"

#include "kernels/table_internal.h"

namespace flywheel::kernels {
namespace {
constexpr int64_t kPiece = 8192;
}

void swiglu(float* y, const float* gate, const float* up, int64_t n, ThreadPool& pool) {
  const auto piece = table().swiglu;
  pool.parallel_for(n, kPiece, [&](int64_t b, int64_t e) { piece(y + b, gate + b, up + b, e - b); });
}

void swiglu_backward(float* dgate, float* dup, const float* dy, const float* gate, const float* up, int64_t n,
                     ThreadPool& pool) {
  const auto piece = table().swiglu_backward;
  pool.parallel_for(
      n, kPiece, [&](int64_t b, int64_t e) { piece(dgate + b, dup + b, dy + b, gate + b, up + b, e - b); });
}

}  // namespace flywheel::kernels
