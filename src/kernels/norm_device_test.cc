// norm.cu on every device of this machine, beside f64 on the same input.
#include "kernels/device_test_internal.h"

namespace flywheel::kernels {
namespace {

struct Shape {
  int64_t T, H, D;
};
// Every RowShape, its last vectors missing or not, and rows that do not fill the last block.
const std::vector<Shape> kShapes = {{5, 1, 8},    {3, 3, 64},   {7, 5, 128},  {2, 1, 200},
                                    {9, 1, 288},  {3, 1, 1024}, {2, 1, 1032}, {2, 1, 2048},
                                    {1, 1, 4088}, {1, 1, 8192}, {2, 1, 8200}, {1, 1, 16384}};

std::vector<double> inverse_rms(const std::vector<float>& x, int64_t rows, int64_t D, double epsilon) {
  std::vector<double> inverse;
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t d = 0; d < D; ++d) squares += std::pow(x[static_cast<size_t>(r * D + d)], 2);
    inverse.push_back(1 / std::sqrt(squares / static_cast<double>(D) + epsilon));
  }
  return inverse;
}

TEST(NormDevice, ForwardIsTheReferenceRounded) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    for (const auto [T, H, D] : kShapes) {
      const auto x = bf16_normal(random, T * H * D), w = random.normal(D);
      const auto inverse = inverse_rms(x, T * H, D, 1e-5);
      std::vector<double> want;
      for (int64_t i = 0; i < T * H * D; ++i) {
        want.push_back(x[static_cast<size_t>(i)] * inverse[static_cast<size_t>(i / D)] *
                       w[static_cast<size_t>(i % D)]);
      }
      DeviceBuffer on_x = on_device(device, bf16_of(x)), on_w = on_device(device, w);
      DeviceBuffer y = device.allocate(on_x.bytes()).value(), on_inverse = device.allocate(T * H * 4).value();
      device.kernels().rms_norm(device.stream(), {y.as<bf16>(), H * D}, on_inverse.as<float>(),
                                {on_x.as<bf16>(), H * D}, on_w.as<float>(), T, H, D, 1e-5f);
      EXPECT_LT(worst_relative_error(floats_of(from_device<bf16>(y)), want, 1e-6), kBf16Rounding)
          << T << ' ' << D;
      EXPECT_LT(worst_relative_error(from_device<float>(on_inverse), inverse, 0), 1e-6) << T << ' ' << D;
    }
  }
}

// Of query, key and value side by side the queries alone, in place.
TEST(NormDevice, HeadsOfAWiderRowLeaveTheRestAsItWas) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    const int64_t T = 6, H = 3, D = 16, stride = 5 * D;
    const auto x = bf16_normal(random, T * stride), w = random.normal(D);
    DeviceBuffer rows = on_device(device, bf16_of(x)), on_w = on_device(device, w);
    const Rows queries{rows.as<bf16>(), stride};
    device.kernels().rms_norm(device.stream(), queries, nullptr, queries, on_w.as<float>(), T, H, D, 1e-6f);
    const auto got = floats_of(from_device<bf16>(rows));
    for (int64_t t = 0; t < T; ++t) {
      const auto row = x.begin() + t * stride;
      const auto inverse = inverse_rms({row, row + H * D}, H, D, 1e-6);
      for (int64_t i = 0; i < stride; ++i) {
        const double was = row[i];
        const double want =
            i < H * D ? was * inverse[static_cast<size_t>(i / D)] * w[static_cast<size_t>(i % D)] : was;
        EXPECT_NEAR(got[static_cast<size_t>(t * stride + i)], want,
                    i < H * D ? std::abs(want) * kBf16Rounding : 0);
      }
    }
  }
}

TEST(NormDevice, AShapeThatItCannotRunEndsTheProgram) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto device = Device::emulated();
  DeviceBuffer x = device->allocate(1024).value();
  const Rows rows{x.as<bf16>(), 12};
  EXPECT_DEATH(
      device->kernels().rms_norm(device->stream(), rows, nullptr, rows, x.as<float>(), 2, 1, 12, 1e-5f),
      "cannot run on this shape");
}

}  // namespace
}  // namespace flywheel::kernels
