// adamw.cu beside the CPU's kernel: the same operations, so where the CPU's variant fuses multiply-adds
// (AVX2, AVX-512) the same bits.
#include "kernels/adamw_device.h"
#include "kernels/device_test_internal.h"

namespace flywheel::kernels {
namespace {

constexpr double kEpsilon = 1e-6;

double norm_of(const std::vector<float>& g) {
  double squares = 0;
  for (const float x : g) squares += static_cast<double>(x) * x;
  return std::sqrt(squares);
}

StepNorm run_norm(Device& device, const std::vector<float>& g, const StepTerms& terms) {
  DeviceBuffer on_g = on_device(device, g), on_terms = on_device(device, std::vector<StepTerms>{terms});
  DeviceBuffer norm = device.allocate(sizeof(StepNorm)).value();
  DeviceBuffer workspace = device.allocate(kNormParts * 8).value();
  device.kernels().gradient_norm(device.stream(), norm.as<StepNorm>(), workspace.as<double>(),
                                 on_g.as<float>(), std::ssize(g), on_terms.as<StepTerms>());
  return from_device<StepNorm>(norm).at(0);
}

TEST(AdamWDevice, TheNormAndWhatItClips) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    // The last has more than one turn of a block, and a rest.
    for (const int64_t n : {1, 3, 4, 1003, 1056 * 1024 + 7}) {
      const auto g = random.normal(n);
      const double times = 37, norm = norm_of(g) / times;
      StepTerms terms;
      terms.times = times;
      StepNorm got = run_norm(device, g, terms);
      EXPECT_NEAR(got.norm / norm, 1, 1e-12) << n;  // f64 in another order
      EXPECT_FLOAT_EQ(got.gradient_scale, static_cast<float>(1 / times));
      EXPECT_EQ(got.applies, 1);
      terms.clip_norm = norm / 3, terms.clip_epsilon = kEpsilon;
      got = run_norm(device, g, terms);
      EXPECT_FLOAT_EQ(got.gradient_scale, static_cast<float>(terms.clip_norm / (norm + kEpsilon) / times));
      terms.clip_norm = norm * 2;
      got = run_norm(device, g, terms);
      EXPECT_FLOAT_EQ(got.gradient_scale, static_cast<float>(1 / times))
          << "below the limit nothing is clipped";
    }
  }
}

TEST(AdamWDevice, ANormThatIsNoNumberIsSkippedWhereTheStepSaysSo) {
  FOR_EACH_DEVICE(device) {
    for (const float bad : {std::nanf(""), HUGE_VALF}) {
      const std::vector<float> g = {1, bad, 2, 3, 4};
      StepTerms terms;
      EXPECT_EQ(run_norm(device, g, terms).applies, 1);
      terms.skips_not_finite = 1;
      EXPECT_EQ(run_norm(device, g, terms).applies, 0);
      EXPECT_EQ(run_norm(device, {1, 2, 3, 4, 5}, terms).applies, 1);
    }
  }
}

struct Values {
  std::vector<float> w, m, v;
  std::vector<bf16> copy;
};

Values run_step(Device& device, const Values& before, const std::vector<float>& g, const StepTerms& terms,
                const StepNorm& norm, const std::vector<AdamWPiece>& pieces, bool has_copy) {
  DeviceBuffer w = on_device(device, before.w), m = on_device(device, before.m),
               v = on_device(device, before.v);
  DeviceBuffer on_g = on_device(device, g), copy = on_device(device, before.copy);
  DeviceBuffer on_pieces = on_device(device, pieces);
  DeviceBuffer on_terms = on_device(device, std::vector<StepTerms>{terms});
  DeviceBuffer on_norm = on_device(device, std::vector<StepNorm>{norm});
  device.kernels().adamw(device.stream(), w.as<float>(), m.as<float>(), v.as<float>(), on_g.as<float>(),
                         has_copy ? copy.as<bf16>() : nullptr, on_pieces.as<AdamWPiece>(), std::ssize(pieces),
                         on_terms.as<StepTerms>(), on_norm.as<StepNorm>());
  return {from_device<float>(w), from_device<float>(m), from_device<float>(v), from_device<bf16>(copy)};
}

TEST(AdamWDevice, StepsAreTheCpus) {
  RandomInput random;
  ThreadPool pool(1);
  const bool fuses = machine_isas().back() != Isa::kBaseline;
  // Pieces that begin anywhere, of every rest modulo 8, one longer than kAdamWPiece, and values of no piece.
  const std::vector<AdamWSegment> segments = {
      {0, 16, 0.1f}, {16, 21, 0}, {21, 4500, 0.3f}, {4501, 4502, 0.1f}, {4504, 4600, 0}};
  const int64_t n = 4601;
  FOR_EACH_DEVICE(device) {
    for (const float l2 : {0.0f, 0.01f}) {
      const auto zeros = std::vector<float>(static_cast<size_t>(n));
      Values want{random.normal(n), zeros, zeros, std::vector<bf16>(static_cast<size_t>(n), bf16{0x1234})};
      Values got = want;
      for (int64_t t = 1; t <= 3; ++t) {
        const auto g = random.normal(n);
        AdamWStep step{.lr = 0.01f, .epsilon = 1e-8f, .t = t, .gradient_scale = 0.37f, .l2 = l2};
        for (const auto& [begin, end, weight_decay] : segments) {
          step.weight_decay = weight_decay;
          const auto at = static_cast<size_t>(begin);
          std::vector<uint16_t> copy(static_cast<size_t>(end - begin));
          adamw(&want.w[at], &want.m[at], &want.v[at], &g[at], copy.data(), end - begin, step, pool);
          for (size_t i = 0; i < copy.size(); ++i) want.copy[at + i] = {copy[i]};
        }
        got = run_step(device, got, g, step_terms(step), {1, 0.37f, 1}, adamw_pieces(segments), true);
      }
      if (fuses) {
        EXPECT_EQ(got.w, want.w);
        EXPECT_EQ(got.m, want.m);
        EXPECT_EQ(got.v, want.v);
        EXPECT_EQ(floats_of(got.copy), floats_of(want.copy));
      } else {
        EXPECT_LT(worst_error(got.w, widen(want.w)), 1e-5);
        EXPECT_LT(worst_error(floats_of(got.copy), widen(floats_of(want.copy))), 0.02);
      }
    }
  }
}

TEST(AdamWDevice, AStepThatDoesNotApplyChangesNothingAndACopyIsOptional) {
  RandomInput random;
  FOR_EACH_DEVICE(device) {
    const int64_t n = 100;
    const Values before{random.normal(n), random.normal(n), std::vector<float>(static_cast<size_t>(n), 0.5f),
                        std::vector<bf16>(static_cast<size_t>(n), bf16{0x1234})};
    const auto g = random.normal(n);
    const auto pieces = adamw_pieces({{0, n, 0.1f}});
    const StepTerms terms = step_terms({.lr = 0.01f});
    const Values skipped = run_step(device, before, g, terms, {1, 1, 0}, pieces, true);
    EXPECT_EQ(skipped.w, before.w);
    EXPECT_EQ(skipped.m, before.m);
    EXPECT_EQ(skipped.v, before.v);
    EXPECT_EQ(floats_of(skipped.copy), floats_of(before.copy));
    const Values with = run_step(device, before, g, terms, {1, 1, 1}, pieces, true);
    const Values without = run_step(device, before, g, terms, {1, 1, 1}, pieces, false);
    EXPECT_NE(with.w, before.w);
    EXPECT_EQ(with.w, without.w);
    EXPECT_EQ(floats_of(without.copy), floats_of(before.copy));
    EXPECT_EQ(floats_of(with.copy), rounded(with.w, DType::kBF16));
  }
}

}  // namespace
}  // namespace flywheel::kernels
