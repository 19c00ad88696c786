#include "kernels/device_test_internal.h"

namespace flywheel::kernels {
namespace {

TEST(Device, OpenWithoutAGpuSaysWhy) {
  const auto none = Device::open(device_count());
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(none.error().message.find("no GPU"), std::string::npos) << none.error().message;
}

TEST(Device, BytesGoThereAndBack) {
  FOR_EACH_DEVICE(device) {
    const std::vector<int32_t> values = {1, 2, 3, 4, 5, 6, 7};
    DeviceBuffer x = on_device(device, values);
    EXPECT_EQ(from_device<int32_t>(x), values);
    DeviceBuffer y = device.allocate(x.bytes()).value();
    y.fill_zero().value();
    y.copy(x, 8, 4, 12).value();
    EXPECT_EQ(from_device<int32_t>(y), (std::vector<int32_t>{0, 4, 5, 0, 0, 0, 0}));
    const int32_t nine = 9;
    y.upload(&nine, 4, 24).value();
    int32_t last = 0;
    y.download(&last, 4, 24).value();
    EXPECT_EQ(last, 9);
    DeviceBuffer none = device.allocate(0).value();
    none.upload(nullptr, 0).value();
    none.fill_zero().value();
    EXPECT_EQ(none.as<char>(), nullptr);
  }
}

TEST(Device, PinnedMemoryIsReadWhenItsTurnComes) {
  FOR_EACH_DEVICE(device) {
    DeviceBuffer pinned = device.allocate(8, MemoryKind::kHost).value(), x = device.allocate(8).value();
    DeviceBuffer back = device.allocate(8, MemoryKind::kHost).value();
    pinned.as<int32_t>()[0] = 5, pinned.as<int32_t>()[1] = 6;
    x.copy(pinned, 8).value();
    back.copy(x, 8).value();
    device.synchronize().value();
    EXPECT_EQ(back.as<int32_t>()[0], 5);
    EXPECT_EQ(back.as<int32_t>()[1], 6);
  }
}

TEST(Device, MoreThanItHasIsFull) {
  FOR_EACH_DEVICE(device) {
    const int64_t before = device.free_bytes();
    const auto none = device.allocate(int64_t{1} << 50);
    ASSERT_FALSE(none.ok());
    EXPECT_EQ(none.error().code, ErrorCode::kFull);
    EXPECT_NE(none.error().message.find(device.name()), std::string::npos) << none.error().message;
    EXPECT_TRUE(device.synchronize().ok());
    EXPECT_EQ(device.free_bytes(), before);
  }
  const auto small = Device::emulated(100);
  const DeviceBuffer half = small->allocate(60).value();
  EXPECT_FALSE(small->allocate(60).ok());
}

// A graph's second launch works on what the first left, with what lies in memory then.
TEST(Device, AGraphDoesTheSameAgain) {
  FOR_EACH_DEVICE(device) {
    const int64_t D = 8;
    const std::vector<float> ones(D, 1.0f);
    DeviceBuffer x = on_device(device, bf16_of(ones)), w = on_device(device, ones);
    DeviceBuffer y = device.allocate(x.bytes()).value(), z = device.allocate(x.bytes()).value();
    y.fill_zero().value();
    DeviceGraph graph = device
                            .capture([&] {
                              device.kernels().rms_norm(device.stream(), {y.as<bf16>(), D}, nullptr,
                                                        {x.as<bf16>(), D}, w.as<float>(), 1, 1, D, 0);
                              z.copy(y, y.bytes()).value();
                            })
                            .value();
    EXPECT_EQ(floats_of(from_device<bf16>(y)), std::vector<float>(D, 0.0f)) << "captured, not run";
    graph.launch().value();
    EXPECT_EQ(floats_of(from_device<bf16>(z)), ones);
    const std::vector<float> twos(D, 2.0f);
    w.upload(twos.data(), w.bytes()).value();
    graph.launch().value();
    EXPECT_EQ(floats_of(from_device<bf16>(z)), twos);
  }
}

TEST(Device, TheTableHasEveryKernel) {
  FOR_EACH_DEVICE(device) {
    using Pointer = void (*)();
    static_assert(sizeof(DeviceTable) % sizeof(Pointer) == 0);
    std::vector<Pointer> all(sizeof(DeviceTable) / sizeof(Pointer));
    std::memcpy(static_cast<void*>(all.data()), &device.kernels(), sizeof(DeviceTable));
    for (size_t i = 0; i < all.size(); ++i)
      EXPECT_NE(all[i], nullptr) << "entry " << i << " of device_table.h";
  }
}

}  // namespace
}  // namespace flywheel::kernels
