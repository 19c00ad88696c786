#include "kernels/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/philox.h"

namespace flywheel::kernels {
namespace {

TEST(DType, SizesOfGgufBlocks) {
  EXPECT_EQ(row_bytes(DType::kQ4_0, 4096), 2304);
  EXPECT_EQ(row_bytes(DType::kQ6_K, 512), 420);
  EXPECT_EQ(row_bytes(DType::kBF16, 3), 6);
  EXPECT_EQ(dtype_from_name("q5_k"), DType::kQ5_K);
  EXPECT_EQ(dtype_from_name("q9"), std::nullopt);
}

// The compiler's own half type (SSE2 and later) is the reference: every f16, and floats around each of them.
TEST(DType, HalfAgreesWithTheCompiler) {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const auto half = static_cast<uint16_t>(i);
    _Float16 reference;
    std::memcpy(&reference, &half, 2);
    const auto widened = static_cast<float>(reference);
    if (std::isnan(widened)) {
      EXPECT_TRUE(std::isnan(from_f16(half)));
      continue;
    }
    ASSERT_EQ(bits_of(from_f16(half)), bits_of(widened)) << i;
    ASSERT_EQ(to_f16(widened), half) << i;
  }
  Philox rng(std::random_device{}());
  for (int i = 0; i < 200000; ++i) {
    const float value = float_of(rng.next_u32());
    if (std::isnan(value)) continue;
    const auto reference = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &reference, 2);
    ASSERT_EQ(to_f16(value), bits) << value;
  }
}

TEST(DType, Bf16RoundsToNearestEven) {
  EXPECT_EQ(to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(to_bf16(float_of(0x3f808000)), 0x3f80);  // half way: to even
  EXPECT_EQ(to_bf16(float_of(0x3f818000)), 0x3f82);
  EXPECT_EQ(to_bf16(float_of(0x3f808001)), 0x3f81);
  EXPECT_TRUE(std::isnan(from_bf16(to_bf16(NAN))));
  EXPECT_TRUE(std::isinf(from_bf16(to_bf16(float_of(0x7f7fffff)))));
}

}  // namespace
}  // namespace flywheel::kernels
