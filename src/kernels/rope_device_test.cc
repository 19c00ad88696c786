// rope.cu beside the CPU's kernel on the same bf16 input: the same operations, so the same bits once rounded.
#include "kernels/device_test_internal.h"
#include "kernels/rope.h"

namespace flywheel::kernels {
namespace {

TEST(RopeDevice, TurnsAndTurnsBackAsTheCpu) {
  RandomInput random;
  ThreadPool pool(1);
  struct Shape {
    int64_t T, heads, others, D, half;  // heads that are turned, others beside them, rotated pairs
  };
  FOR_EACH_DEVICE(device) {
    for (const auto [T, heads, others, D, half] : {Shape{1, 1, 0, 16, 8},
                                                   {13, 3, 2, 32, 16},
                                                   {5, 4, 1, 64, 32},
                                                   {7, 2, 0, 96, 48},
                                                   {3, 5, 3, 80, 16}}) {
      for (const Rotation rotation : {Rotation::kForward, Rotation::kBackward}) {
        std::vector<float> frequencies;
        for (int64_t i = 0; i < half; ++i) {
          frequencies.push_back(std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(half)));
        }
        const RopeTable table(frequencies, 50);
        std::vector<int32_t> positions;
        for (int64_t t = 0; t < T; ++t) positions.push_back(static_cast<int32_t>(random.integer(0, 49)));
        const int64_t stride = (heads + others) * D;
        std::vector<float> want = bf16_normal(random, T * stride);
        DeviceBuffer x = on_device(device, bf16_of(want)), on_positions = on_device(device, positions);
        const std::vector<float> angles(table.cos_row(0), table.cos_row(0) + 50 * 2 * half);
        DeviceBuffer on_angles = on_device(device, angles);
        device.kernels().rope(device.stream(), {x.as<bf16>(), stride}, on_positions.as<int32_t>(),
                              on_angles.as<float>(), T, heads, D, half,
                              rotation == Rotation::kForward ? 1.0f : -1.0f);
        for (int64_t t = 0; t < T; ++t) {
          rope(&want[static_cast<size_t>(t * stride)], &positions[static_cast<size_t>(t)], table, 1, heads, D,
               rotation, pool);
        }
        EXPECT_EQ(floats_of(from_device<bf16>(x)), rounded(want, DType::kBF16))
            << T << ' ' << D << ' ' << half;
      }
    }
  }
}

}  // namespace
}  // namespace flywheel::kernels
