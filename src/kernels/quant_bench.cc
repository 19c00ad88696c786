// Quantized products as a fraction of the machine's limits: one row against reading the weight from memory
// (decoding), many rows in multiply-adds a second (prefill).
#include <cstdio>
#include <vector>

#include "base/cpu.h"
#include "base/philox.h"
#include "kernels/fastest.h"
#include "kernels/linear.h"
#include "kernels/peak.h"

using namespace flywheel;
using namespace flywheel::kernels;

namespace {

PackedWeight random_weight(DType dtype, int64_t N, int64_t K, ThreadPool& pool) {
  std::vector<uint8_t> rows(static_cast<size_t>(N * row_bytes(dtype, K)));
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint8_t>(i * 2654435761u >> 13 & 0x3f);
  return PackedWeight::pack(dtype, rows.data(), N, K, pool);
}

}  // namespace

int main() {
  ThreadPool& pool = compute_pool();
  const double read = peak_read_bytes_per_second(pool);
  std::printf("%s, %s, %d threads; memory read %.1f GB/s\n", cpu_model().c_str(), isa_name(isa()),
              pool.size(), read / 1e9);
  for (const DType dtype : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0,
                            DType::kQ2_K, DType::kQ3_K, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    const int64_t N = 32768, K = 4096;  // far larger than the caches
    const PackedWeight large = random_weight(dtype, N, K, pool);
    std::vector<float> x(static_cast<size_t>(K * 512), 0.5f), y(static_cast<size_t>(N * 512));
    const double one = fastest([&] { linear(y.data(), x.data(), large, 1, pool); });
    const double rate = static_cast<double>(large.packed_bytes()) / one;
    std::printf("%-5s  decode %5.1f GB/s (%.2f of memory read)  small", dtype_name(dtype), rate / 1e9,
                rate / read);
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{576, 768}, {1536, 768}, {768, 1536}}) {
      const PackedWeight small = random_weight(dtype, n, k, pool);
      const double seconds = fastest([&] { linear(y.data(), x.data(), small, 1, pool); });
      std::printf(" %4.1f us", seconds * 1e6);
    }
    const PackedWeight middle = random_weight(dtype, 1536, 768, pool);
    std::printf("  prefill");
    for (const int64_t M : {8, 64, 512}) {
      const double seconds = fastest([&] { linear(y.data(), x.data(), middle, M, pool); });
      std::printf("  M %ld: %5.0f GMAC/s", M, static_cast<double>(M * 1536 * 768) / seconds / 1e9);
    }
    std::printf("\n");
  }
}
