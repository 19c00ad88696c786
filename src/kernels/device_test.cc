#include "kernels/device.h"

#include "kernels/norm.h"
#include "kernels/random_test_internal.h"

namespace flywheel::kernels {
namespace {

TEST(Device, AllocationWithoutADeviceSaysWhy) {
  if (device_count() > 0) GTEST_SKIP() << "a GPU is here";
  EXPECT_EQ(DeviceBuffer::allocate(16).error().code, ErrorCode::kUnavailable);
}

TEST(Device, NormAgreesWithTheHost) {
  if (device_count() == 0) GTEST_SKIP() << "no GPU here";
#ifdef FLYWHEEL_HAS_CUDA
  ThreadPool pool(2);
  for (const int64_t D : {1, 31, 288, 4097}) {
    RandomInput random;
    const int64_t T = random.integer(1, 100), bytes = T * D * 4;
    const auto x = random.normal(T * D), w = random.normal(D);
    std::vector<float> want(x.size()), got(x.size());
    rms_norm(want.data(), x.data(), w.data(), T, D, 1e-5f, pool);
    auto device_x = DeviceBuffer::allocate(bytes).value(), device_w = DeviceBuffer::allocate(D * 4).value();
    auto device_y = DeviceBuffer::allocate(bytes).value();
    device_x.upload(x.data(), bytes).value();
    device_w.upload(w.data(), D * 4).value();
    rms_norm_device(device_y.as<float>(), device_x.as<float>(), device_w.as<float>(), T, D, 1e-5f);
    device_y.download(got.data(), bytes).value();
    EXPECT_LT(worst_error(got, widen(want)), 1e-5) << D;
  }
#endif
}

}  // namespace
}  // namespace flywheel::kernels
