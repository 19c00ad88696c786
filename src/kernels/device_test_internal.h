// For tests of kernels on a device: every device of this machine, and vectors on it.
//
//   FOR_EACH_DEVICE(device) {
//     DeviceBuffer x = on_device(device, bf16_of(values));
//     device.kernels().rms_norm(device.stream(), ...);
//     const std::vector<float> got = floats_of(from_device<bf16>(y));
//   }
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "kernels/device.h"
#include "kernels/dtype.h"
#include "kernels/random_test_internal.h"

namespace flywheel::kernels {

// The emulated device, and the first GPU where there is one.
inline std::vector<std::unique_ptr<Device>> machine_devices() {
  std::vector<std::unique_ptr<Device>> all;
  all.push_back(Device::emulated());
  if (device_count() > 0) all.push_back(Device::open(0).value());
  return all;
}

// NOLINTBEGIN(bugprone-macro-parentheses): a declaration takes none
#define FOR_EACH_DEVICE(device)                        \
  for (const auto& device##_owner : machine_devices()) \
    if (Device& device = *device##_owner; true)        \
      if (::testing::ScopedTrace device_trace(__FILE__, __LINE__, device.name()); true)
// NOLINTEND(bugprone-macro-parentheses)

template <typename T>
DeviceBuffer on_device(Device& device, const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  DeviceBuffer buffer = device.allocate(bytes).value();
  buffer.upload(values.data(), bytes).value();
  return buffer;
}

template <typename T>
std::vector<T> from_device(const DeviceBuffer& buffer) {
  std::vector<T> values(static_cast<size_t>(buffer.bytes()) / sizeof(T));
  buffer.download(values.data(), buffer.bytes()).value();
  return values;
}

inline std::vector<bf16> bf16_of(const std::vector<float>& values) {
  std::vector<bf16> rounded;
  rounded.reserve(values.size());
  for (const float x : values) rounded.push_back({to_bf16(x)});
  return rounded;
}

inline std::vector<float> floats_of(const std::vector<bf16>& values) {
  std::vector<float> widened;
  widened.reserve(values.size());
  for (const bf16 x : values) widened.push_back(from_bf16(x.bits));
  return widened;
}

// Values that a bf16 holds.
inline std::vector<float> bf16_normal(RandomInput& random, int64_t n, float scale = 1.0f) {
  return rounded(random.normal(n, scale), DType::kBF16);
}

// Rounding to bf16 moves a result by at most this share of it: half of the last of 8 bits.
inline constexpr double kBf16Rounding = 1.0 / 256;

// Largest |got - want| / (|want| + floor): for results that were rounded to bf16, each by its own size.
inline double worst_relative_error(const std::vector<float>& got, const std::vector<double>& want,
                                   double floor) {
  if (got.size() != want.size()) return HUGE_VAL;
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - want[i]) / (std::abs(want[i]) + floor);
    if (!std::isfinite(error)) return HUGE_VAL;
    worst = std::max(worst, error);
  }
  return worst;
}

}  // namespace flywheel::kernels
