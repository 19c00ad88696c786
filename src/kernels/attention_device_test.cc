// attention.cu and attention_backward.cu on every device of this machine, beside f64 on the same input.
#include <cstring>

#include "kernels/attention_test_internal.h"
#include "kernels/device_test_internal.h"

namespace flywheel::kernels {
namespace {

constexpr int64_t kSpare = 8;  // columns of a token's row after q, k and v, which nobody may touch

struct Input {
  std::vector<float> q, k, v, dout;  // one sequence
};

struct Output {
  std::vector<float> o, lse, dq, dk, dv;  // B sequences, one after another
};

// Side by side in rows of one matrix, as a fused projection leaves them.
std::vector<bf16> side_by_side(const std::vector<Input>& sequences, const AttentionCase& c) {
  std::vector<float> rows;
  const auto append = [&](const std::vector<float>& x, int64_t t, int64_t width) {
    rows.insert(rows.end(), x.begin() + t * width, x.begin() + (t + 1) * width);
  };
  for (const Input& input : sequences) {
    for (int64_t t = 0; t < c.T; ++t) {
      append(input.q, t, c.heads * c.head_dim);
      append(input.k, t, c.kv_heads * c.head_dim);
      append(input.v, t, c.kv_heads * c.head_dim);
      rows.insert(rows.end(), kSpare, 7.0f);
    }
  }
  return bf16_of(rows);
}

Output run(Device& device, const std::vector<Input>& sequences, const AttentionCase& c, float scale) {
  const int64_t B = std::ssize(sequences), rows = B * c.T, width = c.heads * c.head_dim,
                kv_width = c.kv_heads * c.head_dim, stride = width + 2 * kv_width + kSpare;
  std::vector<float> dout;
  std::vector<int32_t> begins;
  for (const Input& input : sequences) {
    dout.insert(dout.end(), input.dout.begin(), input.dout.end());
    begins.insert(begins.end(), c.begins_T.begin(), c.begins_T.end());
  }
  const DeviceBuffer qkv = on_device(device, side_by_side(sequences, c)),
                     on_dout = on_device(device, bf16_of(dout)), on_begins = on_device(device, begins);
  DeviceBuffer dqkv =
      on_device(device, bf16_of(std::vector<float>(static_cast<size_t>(rows * stride), 9.0f)));
  DeviceBuffer o = device.allocate(rows * width * 2).value(),
               lse = device.allocate(rows * c.heads * 4).value(),
               delta = device.allocate(rows * c.heads * 4).value();
  const auto at = [&](int64_t column) { return ConstRows(qkv.as<bf16>() + column, stride); };
  const auto gradient = [&](int64_t column) { return Rows{dqkv.as<bf16>() + column, stride}; };
  const DeviceAttention a{.q = at(0),
                          .k = at(width),
                          .v = at(width + kv_width),
                          .begins_BT = on_begins.as<int32_t>(),
                          .B = B,
                          .T = c.T,
                          .heads = c.heads,
                          .kv_heads = c.kv_heads,
                          .head_dim = c.head_dim,
                          .scale = scale,
                          .window = c.window};
  device.kernels().attention(device.stream(), o.as<bf16>(), lse.as<float>(), a);
  device.kernels().attention_backward(device.stream(), gradient(0), gradient(width),
                                      gradient(width + kv_width), delta.as<float>(), on_dout.as<bf16>(),
                                      o.as<bf16>(), lse.as<float>(), a);
  Output out{.o = floats_of(from_device<bf16>(o)), .lse = from_device<float>(lse)};
  const std::vector<float> all = floats_of(from_device<bf16>(dqkv));
  for (int64_t row = 0; row < rows; ++row) {
    const auto begin = all.begin() + row * stride;
    out.dq.insert(out.dq.end(), begin, begin + width);
    out.dk.insert(out.dk.end(), begin + width, begin + width + kv_width);
    out.dv.insert(out.dv.end(), begin + width + kv_width, begin + width + 2 * kv_width);
    for (int64_t i = 0; i < kSpare; ++i) EXPECT_EQ(begin[stride - kSpare + i], 9.0f) << "row " << row;
  }
  return out;
}

std::vector<Input> inputs(RandomInput& random, const AttentionCase& c, int64_t B) {
  std::vector<Input> made;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t n = c.T * c.heads * c.head_dim, kv_n = c.T * c.kv_heads * c.head_dim;
    made.push_back({bf16_normal(random, n), bf16_normal(random, kv_n), bf16_normal(random, kv_n),
                    bf16_normal(random, n)});
  }
  return made;
}

float scale_of(const AttentionCase& c) {
  return 1.0f / std::sqrt(static_cast<float>(c.head_dim));
}

std::vector<float> part(const std::vector<float>& x, int64_t b, int64_t B) {
  const auto each = static_cast<int64_t>(x.size()) / B;
  return {x.begin() + b * each, x.begin() + (b + 1) * each};
}

// Weights and their gradients are rounded to bf16 before they are multiplied, and so is what comes out: each
// by up to 1/512 of itself. Of an output a weighted mean of values near 1 is left; of a gradient, whose terms
// are larger than their sum, a share of the largest.
void expect_near_reference(Device& device, const AttentionCase& c, int64_t B, RandomInput& random) {
  const std::vector<Input> sequences = inputs(random, c, B);
  const Output got = run(device, sequences, c, scale_of(c));
  for (int64_t b = 0; b < B; ++b) {
    SCOPED_TRACE(::testing::Message() << "T " << c.T << " heads " << c.heads << '/' << c.kv_heads << " of "
                                      << c.head_dim << " window " << c.window << " sequence " << b);
    const Input& x = sequences[static_cast<size_t>(b)];
    const AttentionReference want = attention_reference(x.q, x.k, x.v, x.dout, c, scale_of(c));
    EXPECT_LT(worst_relative_error(part(got.o, b, B), want.out, 1), 2 * kBf16Rounding);
    const std::vector<float> lse_HT = part(got.lse, b, B);
    for (int64_t t = 0; t < c.T; ++t) {
      for (int64_t h = 0; h < c.heads; ++h) {
        ASSERT_NEAR(lse_HT[static_cast<size_t>(h * c.T + t)],
                    want.lse_TH[static_cast<size_t>(t * c.heads + h)], 1e-4)
            << t << ' ' << h;
      }
    }
    EXPECT_LT(worst_error_of_largest(part(got.dv, b, B), want.dv), 4 * kBf16Rounding);
    if (c.T == 1 || c.window == 1) continue;  // scores of a single key have no gradient
    EXPECT_LT(worst_error_of_largest(part(got.dq, b, B), want.dq), 4 * kBf16Rounding);
    EXPECT_LT(worst_error_of_largest(part(got.dk, b, B), want.dk), 4 * kBf16Rounding);
  }
}

TEST(AttentionDevice, ForwardAndBackwardAgreeWithF64) {
  RandomInput random;
  // Lengths at the edges of every tile (of 32, 48, 64 and 128 rows); groups of 1 to 4 heads; columns that
  // fill a tile or do not.
  FOR_EACH_DEVICE(device) {
    expect_near_reference(device, {1, 1, 1, 64, 0}, 3, random);
    expect_near_reference(device, {63, 2, 1, 64, 0}, 2, random);
    expect_near_reference(device, {64, 2, 2, 128, 0}, 1, random);
    expect_near_reference(device, {65, 4, 1, 64, 0}, 1, random);
    expect_near_reference(device, {130, 2, 1, 128, 0}, 1, random);
    expect_near_reference(device, {130, 3, 3, 64, 0}, 1, random);
    expect_near_reference(device, {40, 2, 1, 80, 0}, 2, random);
    expect_near_reference(device, {33, 2, 2, 24, 0}, 1, random);
  }
}

TEST(AttentionDevice, AWindowHidesWhatLiesBeforeIt) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    for (const int64_t window : {1, 20, 64, 97})
      expect_near_reference(device, {130, 2, 1, 64, window}, 1, random);
    expect_near_reference(device, {200, 1, 1, 128, 50}, 1, random);
  }
}

// Samples of several lengths in one row of tokens, some shorter than a tile and some across several.
TEST(AttentionDevice, PackedSamplesDoNotSeeEachOther) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    for (const int64_t head_dim : {64, 128}) {
      for (const int64_t window : {0, 30}) {
        AttentionCase c{0, 2, 1, head_dim, window};
        for (const int64_t length : {1, 37, 64, 2, 75}) {
          c.begins_T.insert(c.begins_T.end(), static_cast<size_t>(length), static_cast<int32_t>(c.T));
          c.T += length;
        }
        expect_near_reference(device, c, 1, random);
      }
    }
  }
}

TEST(AttentionDevice, TheSameInputHasTheSameBits) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    const AttentionCase c{100, 4, 2, 64, 0};
    const std::vector<Input> sequences = inputs(random, c, 2);
    const Output first = run(device, sequences, c, scale_of(c)),
                 again = run(device, sequences, c, scale_of(c));
    EXPECT_EQ(first.o, again.o);
    EXPECT_EQ(first.lse, again.lse);
    EXPECT_EQ(first.dq, again.dq);
    EXPECT_EQ(first.dk, again.dk);
    EXPECT_EQ(first.dv, again.dv);
  }
}

}  // namespace
}  // namespace flywheel::kernels
