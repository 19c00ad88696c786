#include <algorithm>

#include "base/check.h"
#include "kernels/quant.h"
#include "kernels/quant_gemm_internal.h"
#include "kernels/scratch_internal.h"
#include "kernels/variant.h"

namespace flywheel::kernels {
namespace {

const QuantTable& quant_table() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::kAvx512:
      return quant_table_avx512();
    case Isa::kAvx2:
      return quant_table_avx2();
    case Isa::kBaseline:
      break;
  }
#endif
  return quant_table_baseline();
}

// Enough work for a thread to be worth waking: tiles of about 64 KB of weights together at M = 1.
int64_t tiles_per_piece(const QuantLayout& layout, int64_t M) {
  const int64_t tile_bytes = layout.total_bytes / std::max<int64_t>(layout.tiles, 1);
  return std::clamp<int64_t>((64 << 10) / std::max<int64_t>(tile_bytes * M, 1), 1, 64);
}

}  // namespace

const QuantTable& quant_table_baseline() {
  static constexpr QuantTable kTable = make_quant_table<Baseline>();
  return kTable;
}

void quant_linear(float* y_MN, const float* x_MK, DType dtype, const uint8_t* packed, int64_t M, int64_t N,
                  int64_t K, ThreadPool& pool) {
  const QuantTable& table = quant_table();
  const QuantLayout layout = quant_layout(dtype, N, K);
  const int64_t row_size = K / kQuantColumns * kInputBytesPerRow;
  auto* x = scratch<uint8_t>(Scratch::kLinearInput, M * row_size);
  pool.parallel_for(M, std::max<int64_t>(table.rows_per_tile, 64), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end;) {
      const int rows = next_tile(end - row, table.rows_per_tile);
      table.quantize_tile(x + row * row_size, x_MK + row * K, rows, K, dtype);
      row += rows;
    }
  });
  const auto gemm = table.gemm[static_cast<int>(dtype) - static_cast<int>(kFirstQuantized)];
  pool.parallel_for(layout.tiles, tiles_per_piece(layout, M), [&](int64_t begin, int64_t end) {
    gemm({y_MN, M, N, K, x, packed, &layout, begin, end});
  });
}

}  // namespace flywheel::kernels
