// Matrix products as a fraction of the machine's limits: multiply-adds from registers on every core
// (compute), and reading memory on every core (one row: decoding).
#include <cstdio>
#include <vector>

#include "base/cpu.h"
#include "kernels/fastest.h"
#include "kernels/linear.h"
#include "kernels/peak.h"

using namespace flywheel;
using namespace flywheel::kernels;

namespace {

struct Shape {
  int64_t M, N, K;
};

}  // namespace

int main() {
  ThreadPool& pool = compute_pool();
  const double read = peak_read_bytes_per_second(pool);
  std::printf("%s, %s, %d threads; memory read %.1f GB/s\n", cpu_model().c_str(), isa_name(isa()),
              pool.size(), read / 1e9);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const double limit = peak_flops(dtype, pool);
    std::printf("%s: limit %.0f GFLOP/s\n", dtype_name(dtype), limit / 1e9);
    for (const auto [M, N, K] : {Shape{1024, 288, 288}, Shape{1024, 768, 288}, Shape{1024, 288, 768},
                                 Shape{256, 32000, 288}, Shape{512, 1536, 576}, Shape{1024, 1024, 1024}}) {
      const std::vector<float> x(static_cast<size_t>(M * K), 0.5f), dy(static_cast<size_t>(M * N), 0.25f);
      std::vector<float> w(static_cast<size_t>(N * K), 0.125f), y(dy.size()), dx(x.size());
      const auto packed = PackedWeight::pack_from_f32(dtype, w.data(), N, K, pool);
      const auto packed_t = PackedWeight::pack_transposed_from_f32(dtype, w.data(), N, K, pool);
      const double flop = 2.0 * static_cast<double>(M * N * K);
      const double forward = fastest([&] { linear(y.data(), x.data(), packed, M, pool); });
      const double input = fastest([&] { linear(dx.data(), dy.data(), packed_t, M, pool); });
      const double weight =
          fastest([&] { linear_backward_weight(w.data(), dy.data(), x.data(), dtype, M, N, K, pool); });
      std::printf("  %5ld x %5ld x %5ld   forward %5.0f GFLOP/s (%.2f)   dx %5.0f (%.2f)   dw %5.0f (%.2f)\n",
                  M, N, K, flop / forward / 1e9, flop / forward / limit, flop / input / 1e9,
                  flop / input / limit, flop / weight / 1e9, flop / weight / limit);
    }
    const int64_t N = 16384, K = 4096;  // far larger than the caches
    const std::vector<float> x(static_cast<size_t>(K), 0.5f), w(static_cast<size_t>(N * K), 0.125f);
    const auto packed = PackedWeight::pack_from_f32(dtype, w.data(), N, K, pool);
    std::vector<float> y(static_cast<size_t>(N));
    const double one = fastest([&] { linear(y.data(), x.data(), packed, 1, pool); });
    const double rate = static_cast<double>(packed.packed_bytes()) / one;
    std::printf("      1 x %5ld x %5ld   %5.1f GB/s (%.2f of memory read)\n", N, K, rate / 1e9, rate / read);
  }
}
