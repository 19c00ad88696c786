// elementwise.cu beside the same sums and roundings on the host; whole vectors and what is left of one.
#include "kernels/device_test_internal.h"

namespace flywheel::kernels {
namespace {

const std::vector<int64_t> kSizes = {1, 8, 2047, 2049, 5000};

TEST(ElementwiseDevice, SumsAndConversionsOfFlatBuffers) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    const DeviceTable& k = device.kernels();
    for (const int64_t n : kSizes) {
      const auto a = random.normal(n), b = random.normal(n);
      const auto ra = rounded(a, DType::kBF16), rb = rounded(b, DType::kBF16);
      std::vector<float> sums, scaled;
      for (size_t i = 0; i < a.size(); ++i) {
        sums.push_back(from_bf16(to_bf16(ra[i] + rb[i])));
        scaled.push_back(std::fma(0.3f, b[i], a[i]));
      }
      DeviceBuffer on_a = on_device(device, a), on_b = on_device(device, b);
      DeviceBuffer na = device.allocate(n * 2).value(), nb = device.allocate(n * 2).value();
      DeviceBuffer wide = device.allocate(n * 4).value();
      k.narrow(device.stream(), na.as<bf16>(), on_a.as<float>(), n);
      k.narrow(device.stream(), nb.as<bf16>(), on_b.as<float>(), n);
      k.widen(device.stream(), wide.as<float>(), na.as<bf16>(), n);
      EXPECT_EQ(floats_of(from_device<bf16>(na)), ra) << n;
      EXPECT_EQ(from_device<float>(wide), ra) << n;
      k.add(device.stream(), na.as<bf16>(), na.as<bf16>(), nb.as<bf16>(), n);
      EXPECT_EQ(floats_of(from_device<bf16>(na)), sums) << n;
      k.add_scaled(device.stream(), on_b.as<float>(), on_a.as<float>(), on_b.as<float>(), 0.3f, n);
      EXPECT_EQ(from_device<float>(on_b), scaled) << n;
      k.fill(device.stream(), wide.as<float>(), -2.5f, n);
      EXPECT_EQ(from_device<float>(wide), std::vector<float>(static_cast<size_t>(n), -2.5f)) << n;
    }
  }
}

TEST(ElementwiseDevice, RoundingIsTheHosts) {
  // Halves to even, what overflows, what has no bits left, and no number.
  const std::vector<float> x = {1.00390625f, 1.01171875f, 3.4e38f,   -3.4e38f,    HUGE_VALF,    -HUGE_VALF,
                                1e-45f,      -0.0f,       0x1p-133f, 0x1.8p-133f, std::nanf("")};
  FOR_EACH_DEVICE(device) {
    DeviceBuffer on_x = on_device(device, x), y = device.allocate(std::ssize(x) * 2).value();
    device.kernels().narrow(device.stream(), y.as<bf16>(), on_x.as<float>(), std::ssize(x));
    const auto got = from_device<bf16>(y);
    for (size_t i = 0; i + 1 < x.size(); ++i) EXPECT_EQ(got[i].bits, to_bf16(x[i])) << x[i];
    EXPECT_TRUE(std::isnan(from_bf16(got.back().bits)));
  }
}

TEST(ElementwiseDevice, ASumIsAddedInF64) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    for (const int64_t n : kSizes) {
      const auto x = random.normal(n);
      double want = 1000;
      for (const float v : x) want += v;
      DeviceBuffer on_x = on_device(device, x), total = on_device(device, std::vector<double>{1000});
      device.kernels().sum(device.stream(), total.as<double>(), on_x.as<float>(), n);
      EXPECT_NEAR(from_device<double>(total).at(0), want, 1e-9) << n;
    }
  }
}

TEST(ElementwiseDevice, ABiasAndItsGradient) {
  RandomInput random;
  struct Shape {
    int64_t T, N;
  };
  FOR_EACH_DEVICE(device) {
    for (const auto [T, N] : {Shape{1, 8}, {7, 72}, {30, 264}, {2200, 512}}) {
      const int64_t stride = N + 16;  // the gradient is a part of wider rows
      const auto y = bf16_normal(random, T * N), dy = bf16_normal(random, T * stride);
      const auto bias = random.normal(N), before = random.normal(N);
      std::vector<float> sums;
      std::vector<double> gradient = widen(before);
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t i = 0; i < N; ++i) {
          sums.push_back(
              from_bf16(to_bf16(y[static_cast<size_t>(t * N + i)] + bias[static_cast<size_t>(i)])));
          gradient[static_cast<size_t>(i)] += dy[static_cast<size_t>(t * stride + i)];
        }
      }
      DeviceBuffer on_y = on_device(device, bf16_of(y)), on_dy = on_device(device, bf16_of(dy));
      DeviceBuffer on_bias = on_device(device, bias), on_gradient = on_device(device, before);
      DeviceBuffer workspace = device.allocate(row_workspace(T, N) * 4).value();
      device.kernels().add_bias(device.stream(), on_y.as<bf16>(), on_bias.as<float>(), T, N);
      device.kernels().bias_backward(device.stream(), on_gradient.as<float>(), workspace.as<float>(),
                                     on_dy.as<bf16>(), stride, T, N);
      EXPECT_EQ(floats_of(from_device<bf16>(on_y)), sums) << T << ' ' << N;
      // Sums of T values of about 1 in f32.
      EXPECT_LT(worst_error(from_device<float>(on_gradient), gradient), 1e-5) << T << ' ' << N;
    }
  }
}

}  // namespace
}  // namespace flywheel::kernels
