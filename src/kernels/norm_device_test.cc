// norm.cu on every device of this machine, beside f64 on the same input.
#include "kernels/device_test_internal.h"
#include "kernels/elementwise.h"
#include "kernels/norm.h"

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

// The norm is of the sum as it was rounded: what backward sees.
TEST(NormDevice, TheResidualIsAddedFirst) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    for (const auto [T, H, D] : kShapes) {
      const int64_t rows = T * H;
      const auto x = bf16_normal(random, rows * D), delta = bf16_normal(random, rows * D),
                 w = random.normal(D);
      std::vector<float> sum;
      for (size_t i = 0; i < x.size(); ++i) sum.push_back(from_bf16(to_bf16(x[i] + delta[i])));
      const auto inverse = inverse_rms(sum, rows, D, 1e-5);
      std::vector<double> want;
      for (int64_t i = 0; i < rows * D; ++i) {
        want.push_back(sum[static_cast<size_t>(i)] * inverse[static_cast<size_t>(i / D)] *
                       w[static_cast<size_t>(i % D)]);
      }
      DeviceBuffer stream = on_device(device, bf16_of(x)), on_delta = on_device(device, bf16_of(delta));
      DeviceBuffer on_w = on_device(device, w), y = device.allocate(stream.bytes()).value();
      DeviceBuffer on_inverse = device.allocate(rows * 4).value();
      device.kernels().add_rms_norm(device.stream(), y.as<bf16>(), stream.as<bf16>(), on_inverse.as<float>(),
                                    stream.as<bf16>(), on_delta.as<bf16>(), on_w.as<float>(), rows, D, 1e-5f);
      EXPECT_EQ(floats_of(from_device<bf16>(stream)), sum) << rows << ' ' << D;
      EXPECT_LT(worst_relative_error(floats_of(from_device<bf16>(y)), want, 1e-6), kBf16Rounding)
          << rows << ' ' << D;
      EXPECT_LT(worst_relative_error(from_device<float>(on_inverse), inverse, 0), 1e-6) << rows << ' ' << D;
    }
  }
}

// Beside the CPU's kernel on the same bf16 input. dx differs by its rounding and by f32 sums in another
// order; those of dweight, too: some 1e-7 times the root of the rows.
TEST(NormDevice, BackwardIsTheCpus) {
  RandomInput random;
  ThreadPool pool(1);
  std::vector<Shape> shapes = kShapes;
  shapes.insert(shapes.end(), {{17000, 1, 8}, {270, 1, 8200}});  // more rows than the blocks have at once
  FOR_EACH_DEVICE(device) {
    for (const auto [T, H, D] : shapes) {
      for (const bool has_residual : {false, true}) {
        const int64_t rows = T * H;
        const auto x = bf16_normal(random, rows * D), dy = bf16_normal(random, rows * D),
                   w = random.normal(D);
        const auto residual = bf16_normal(random, rows * D), before = random.normal(D);
        std::vector<float> dx(x.size()), dw = before, inverse;
        rms_norm_backward(dx.data(), dw.data(), dy.data(), x.data(), w.data(), rows, D, 1e-5f, pool);
        if (has_residual) add(dx.data(), dx.data(), residual.data(), rows * D, pool);
        for (const double r : inverse_rms(x, rows, D, 1e-5)) inverse.push_back(static_cast<float>(r));
        DeviceBuffer on_x = on_device(device, bf16_of(x)), on_dy = on_device(device, bf16_of(dy));
        DeviceBuffer on_residual = on_device(device, bf16_of(residual)), on_w = on_device(device, w);
        DeviceBuffer on_dw = on_device(device, before), on_inverse = on_device(device, inverse);
        DeviceBuffer workspace = device.allocate(row_workspace(rows, D) * 4).value();
        const Rows in_place{on_dy.as<bf16>(), H * D};
        device.kernels().rms_norm_backward(
            device.stream(), in_place, on_dw.as<float>(), workspace.as<float>(), in_place,
            {has_residual ? on_residual.as<bf16>() : nullptr, H * D}, {on_x.as<bf16>(), H * D},
            on_inverse.as<float>(), on_w.as<float>(), T, H, D);
        EXPECT_LT(worst_relative_error(floats_of(from_device<bf16>(on_dy)), widen(dx), 1e-3), kBf16Rounding)
            << T << ' ' << H << ' ' << D;
        EXPECT_LT(worst_error(from_device<float>(on_dw), widen(dw)), 2e-5) << T << ' ' << H << ' ' << D;
      }
    }
  }
}

TEST(NormDevice, BackwardOfHeadsOfAWiderRow) {
  RandomInput random;
  ThreadPool pool(1);
  FOR_EACH_DEVICE(device) {
    const int64_t T = 5, H = 3, D = 16, stride = 4 * D;
    const auto x = bf16_normal(random, T * stride), dy = bf16_normal(random, T * stride),
               w = random.normal(D);
    std::vector<float> want = dy, dw(static_cast<size_t>(D)), inverse;
    for (int64_t t = 0; t < T; ++t) {
      const auto at = static_cast<size_t>(t * stride);
      rms_norm_backward(&want[at], dw.data(), &dy[at], &x[at], w.data(), H, D, 1e-5f, pool);
      const auto row = x.begin() + t * stride;
      for (const double r : inverse_rms({row, row + H * D}, H, D, 1e-5))
        inverse.push_back(static_cast<float>(r));
    }
    DeviceBuffer on_x = on_device(device, bf16_of(x)), on_dy = on_device(device, bf16_of(dy));
    DeviceBuffer on_w = on_device(device, w), on_inverse = on_device(device, inverse);
    const Rows gradient{on_dy.as<bf16>(), stride};
    device.kernels().rms_norm_backward(device.stream(), gradient, nullptr, nullptr, gradient, {nullptr, 0},
                                       {on_x.as<bf16>(), stride}, on_inverse.as<float>(), on_w.as<float>(), T,
                                       H, D);
    EXPECT_LT(worst_relative_error(floats_of(from_device<bf16>(on_dy)), widen(want), 1e-3), kBf16Rounding);
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
