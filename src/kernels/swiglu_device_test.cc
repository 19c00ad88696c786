// swiglu.cu beside the CPU's kernel on the same bf16 input. They differ by the rounding of results to bf16,
// and by exp and division of a few units of f32's last place, which the floor of the relative error takes in
// near zero.
#include "kernels/device_test_internal.h"
#include "kernels/swiglu.h"

namespace flywheel::kernels {
namespace {

constexpr double kFloor = 1e-4;

struct Case {
  int64_t T, F;
  std::vector<float> gate_up, gate, up, dy;
};

Case make_case(RandomInput& random, int64_t T, int64_t F) {
  Case c{T, F, bf16_normal(random, T * 2 * F, 3), {}, {}, bf16_normal(random, T * F)};
  c.gate_up[0] = 100, c.gate_up[1] = -100, c.gate_up[2] = 0, c.gate_up[3] = -30;
  for (int64_t t = 0; t < T; ++t) {
    const auto row = c.gate_up.begin() + t * 2 * F;
    c.gate.insert(c.gate.end(), row, row + F);
    c.up.insert(c.up.end(), row + F, row + 2 * F);
  }
  return c;
}

const std::vector<std::pair<int64_t, int64_t>> kShapes = {{1, 8}, {3, 64}, {9, 520}, {2, 2056}};

TEST(SwigluDevice, ForwardIsTheCpus) {
  RandomInput random;
  ThreadPool pool(1);
  FOR_EACH_DEVICE(device) {
    for (const auto& [T, F] : kShapes) {
      const Case c = make_case(random, T, F);
      std::vector<float> want(c.gate.size());
      swiglu(want.data(), c.gate.data(), c.up.data(), T * F, pool);
      DeviceBuffer gate_up = on_device(device, bf16_of(c.gate_up)), y = device.allocate(T * F * 2).value();
      device.kernels().swiglu(device.stream(), y.as<bf16>(), gate_up.as<bf16>(), T, F);
      EXPECT_LT(worst_relative_error(floats_of(from_device<bf16>(y)), widen(want), kFloor), kBf16Rounding)
          << T << ' ' << F;
    }
  }
}

TEST(SwigluDevice, BackwardIsTheCpusAndGivesForwardAgain) {
  RandomInput random;
  ThreadPool pool(1);
  FOR_EACH_DEVICE(device) {
    for (const auto& [T, F] : kShapes) {
      const Case c = make_case(random, T, F);
      std::vector<float> dgate(c.gate.size()), dup(c.gate.size()), want;
      swiglu_backward(dgate.data(), dup.data(), c.dy.data(), c.gate.data(), c.up.data(), T * F, pool);
      for (int64_t t = 0; t < T; ++t) {
        want.insert(want.end(), dgate.begin() + t * F, dgate.begin() + (t + 1) * F);
        want.insert(want.end(), dup.begin() + t * F, dup.begin() + (t + 1) * F);
      }
      DeviceBuffer gate_up = on_device(device, bf16_of(c.gate_up)), dy = on_device(device, bf16_of(c.dy));
      DeviceBuffer y = device.allocate(T * F * 2).value(), again = device.allocate(T * F * 2).value();
      device.kernels().swiglu(device.stream(), y.as<bf16>(), gate_up.as<bf16>(), T, F);
      device.kernels().swiglu_backward(device.stream(), gate_up.as<bf16>(), again.as<bf16>(), dy.as<bf16>(),
                                       gate_up.as<bf16>(), T, F);
      EXPECT_LT(worst_relative_error(floats_of(from_device<bf16>(gate_up)), widen(want), kFloor),
                kBf16Rounding)
          << T << ' ' << F;
      EXPECT_EQ(floats_of(from_device<bf16>(again)), floats_of(from_device<bf16>(y))) << T << ' ' << F;
    }
  }
}

TEST(SwigluDevice, BackwardWithoutForwardWritesTheSameGradient) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    const Case c = make_case(random, 3, 40);
    DeviceBuffer gate_up = on_device(device, bf16_of(c.gate_up)), dy = on_device(device, bf16_of(c.dy));
    DeviceBuffer y = device.allocate(dy.bytes()).value(), apart = device.allocate(gate_up.bytes()).value();
    const auto backward = [&](bf16* to, bf16* forward) {
      device.kernels().swiglu_backward(device.stream(), to, forward, dy.as<bf16>(), gate_up.as<bf16>(), c.T,
                                       c.F);
    };
    backward(apart.as<bf16>(), nullptr);
    backward(gate_up.as<bf16>(), y.as<bf16>());
    EXPECT_EQ(floats_of(from_device<bf16>(apart)), floats_of(from_device<bf16>(gate_up)));
  }
}

}  // namespace
}  // namespace flywheel::kernels
