// linear.cu on every device of this machine, beside f64 on the same input.
#include "kernels/device_test_internal.h"

namespace flywheel::kernels {
namespace {

struct Shape {
  int64_t M, N, K;
};
// Rows of every number, widths that are multiples of 8 and of nothing more.
const std::vector<Shape> kShapes = {{1, 8, 8}, {5, 24, 40}, {33, 136, 72}, {130, 64, 256}};

// sum over `inner` of a(i, l) * b(l, j).
template <typename A, typename B>
std::vector<double> product(int64_t rows, int64_t columns, int64_t inner, const A& a, const B& b) {
  std::vector<double> y;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < inner; ++l) sum += a(i, l) * b(l, j);
      y.push_back(sum);
    }
  }
  return y;
}

auto rows_of(const std::vector<float>& x, int64_t width) {
  return [&x, width](int64_t i, int64_t j) {
    return static_cast<double>(x[static_cast<size_t>(i * width + j)]);
  };
}
auto columns_of(const std::vector<float>& x, int64_t width) {
  return [&x, width](int64_t i, int64_t j) {
    return static_cast<double>(x[static_cast<size_t>(j * width + i)]);
  };
}

// Sums of f32, of which tensor cores keep a little less than 24 bits, then one rounding to bf16; near zero
// the sum's own error is left.
double floor_of(int64_t inner) {
  return 1e-3 * std::sqrt(static_cast<double>(inner));
}

TEST(LinearDevice, ForwardWithAndWithoutABiasAgreesWithF64) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    for (const auto [M, N, K] : kShapes) {
      const auto x = bf16_normal(random, M * K), w = bf16_normal(random, N * K),
                 bias = bf16_normal(random, N);
      const DeviceBuffer on_x = on_device(device, bf16_of(x)), on_w = on_device(device, bf16_of(w)),
                         on_bias = on_device(device, bf16_of(bias));
      DeviceBuffer y = device.allocate(M * N * 2).value();
      for (const bool biased : {false, true}) {
        auto want = product(M, N, K, rows_of(x, K), columns_of(w, K));
        if (biased) {
          for (size_t i = 0; i < want.size(); ++i) want[i] += bias[i % bias.size()];
        }
        device.kernels().linear(device.stream(), y.as<bf16>(), on_x.as<bf16>(), on_w.as<bf16>(),
                                biased ? on_bias.as<bf16>() : nullptr, M, N, K);
        EXPECT_LT(worst_relative_error(floats_of(from_device<bf16>(y)), want, floor_of(K)), kBf16Rounding)
            << M << 'x' << N << 'x' << K << " bias " << biased;
      }
    }
  }
}

TEST(LinearDevice, GradientsAgreeWithF64) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    for (const auto [M, N, K] : kShapes) {
      SCOPED_TRACE(::testing::Message() << M << 'x' << N << 'x' << K);
      const auto x = bf16_normal(random, M * K), w = bf16_normal(random, N * K),
                 dy = bf16_normal(random, M * N), dx_before = bf16_normal(random, M * K),
                 dw_before = random.normal(N * K);
      const DeviceBuffer on_x = on_device(device, bf16_of(x)), on_w = on_device(device, bf16_of(w)),
                         on_dy = on_device(device, bf16_of(dy));
      for (const bool adds : {false, true}) {
        auto want = product(M, K, N, rows_of(dy, N), rows_of(w, K));
        for (size_t i = 0; i < want.size(); ++i) want[i] += adds ? dx_before[i] : 0;
        DeviceBuffer dx = on_device(device, bf16_of(dx_before));
        device.kernels().linear_dx(device.stream(), dx.as<bf16>(), on_dy.as<bf16>(), on_w.as<bf16>(), M, N, K,
                                   adds);
        EXPECT_LT(worst_relative_error(floats_of(from_device<bf16>(dx)), want, floor_of(N)), kBf16Rounding)
            << adds;
      }
      auto want = product(N, K, M, columns_of(dy, N), rows_of(x, K));
      for (size_t i = 0; i < want.size(); ++i) want[i] += dw_before[i];
      DeviceBuffer dw = on_device(device, dw_before);
      device.kernels().linear_dw(device.stream(), dw.as<float>(), on_dy.as<bf16>(), on_x.as<bf16>(), M, N, K);
      EXPECT_LT(worst_error(from_device<float>(dw), want), 1e-4);
    }
  }
}

TEST(LinearDevice, TheSameInputHasTheSameBits) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    // Few results of long sums, which a library likes to split.
    const int64_t M = 4096, N = 64, K = 32;
    const DeviceBuffer x = on_device(device, bf16_of(random.normal(M * K))),
                       dy = on_device(device, bf16_of(random.normal(M * N)));
    std::vector<std::vector<float>> results;
    for (int i = 0; i < 3; ++i) {
      DeviceBuffer dw = on_device(device, std::vector<float>(static_cast<size_t>(N * K)));
      device.kernels().linear_dw(device.stream(), dw.as<float>(), dy.as<bf16>(), x.as<bf16>(), M, N, K);
      results.push_back(from_device<float>(dw));
      EXPECT_EQ(results.back(), results.front());
    }
  }
}

}  // namespace
}  // namespace flywheel::kernels
