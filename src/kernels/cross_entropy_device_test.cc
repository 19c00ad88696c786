// cross_entropy.cu beside f64 on the same bf16 logits.
#include "kernels/cross_entropy.h"
#include "kernels/device_test_internal.h"

namespace flywheel::kernels {
namespace {

struct Case {
  int64_t R, V, stride;
  std::vector<float> logits;  // [R, stride]
  std::vector<int32_t> targets;
  std::vector<double> losses, gradient;  // [R], [R, stride]
};

Case make_case(RandomInput& random, int64_t R, int64_t V, int64_t stride, double scale) {
  Case c{R, V, stride, bf16_normal(random, R * stride, 4), {}, {}, {}};
  for (int64_t r = 0; r < R; ++r) {
    float* row = &c.logits[static_cast<size_t>(r * stride)];
    for (int64_t v = V; v < stride; ++v) row[v] = 0x1p99f;  // no part of the vocabulary
    const auto target = static_cast<int32_t>(r == 1 ? kNoTarget : random.integer(0, V - 1));
    if (r == 2 && V > 1) row[target == 0 ? 1 : 0] = -HUGE_VALF;
    if (r == 3) row[target] = 90;  // a loss of about 0
    double top = -HUGE_VAL, sum = 0;
    for (int64_t v = 0; v < V; ++v) top = std::max<double>(top, row[v]);
    for (int64_t v = 0; v < V; ++v) sum += std::exp(row[v] - top);
    c.targets.push_back(target);
    c.losses.push_back(target == kNoTarget ? 0 : top + std::log(sum) - row[target]);
    for (int64_t v = 0; v < stride; ++v) {
      const double probability = std::exp(row[v] - top) / sum;
      c.gradient.push_back(target == kNoTarget || v >= V ? 0 : (probability - (v == target)) * scale);
    }
  }
  return c;
}

// The loss is a difference of numbers up to 100 in f32, and so is the exponent of a probability.
constexpr double kLossError = 3e-5;

TEST(CrossEntropyDevice, LossesAndGradientInPlace) {
  RandomInput random;
  const float scale = 0.125f;
  struct Shape {
    int64_t R, V, stride;
  };
  FOR_EACH_DEVICE(device) {
    for (const auto [R, V, stride] :
         {Shape{5, 1, 8}, {5, 7, 8}, {6, 256, 256}, {5, 1000, 1016}, {4, 8195, 8200}, {4, 20000, 20000}}) {
      const Case c = make_case(random, R, V, stride, scale);
      DeviceBuffer logits = on_device(device, bf16_of(c.logits)), targets = on_device(device, c.targets);
      DeviceBuffer losses = device.allocate(R * 4).value(), evaluated = device.allocate(R * 4).value();
      const auto run = [&](bf16* gradient, DeviceBuffer& loss) {
        device.kernels().softmax_cross_entropy(device.stream(), gradient, loss.as<float>(), logits.as<bf16>(),
                                               targets.as<int32_t>(), scale, R, V, stride);
      };
      run(nullptr, evaluated);
      EXPECT_EQ(floats_of(from_device<bf16>(logits)), c.logits) << "without a gradient nothing is written";
      run(logits.as<bf16>(), losses);
      EXPECT_EQ(from_device<float>(losses), from_device<float>(evaluated));
      EXPECT_LT(largest_difference(from_device<float>(losses), c.losses), kLossError) << R << ' ' << V;
      // Of a probability near 1 less 1 the error is that of f32 near 1.
      const auto got = floats_of(from_device<bf16>(logits));
      for (size_t i = 0; i < got.size(); ++i) {
        const double error = std::abs(got[i] - c.gradient[i]);
        ASSERT_LE(error, std::abs(c.gradient[i]) * (kBf16Rounding + kLossError) + scale * kLossError)
            << V << " logit " << i;
      }
    }
  }
}

}  // namespace
}  // namespace flywheel::kernels
