// The device's trainer beside the trainer in main memory: on the emulated device, and on a GPU where there is
// one.
#include "train/device_trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/cases_for_tests.h"
#include "base/file.h"
#include "data/shards.h"
#include "train/device_trainer_for_tests.h"

namespace flywheel::train {
namespace {

// Those that this machine has.
std::vector<std::unique_ptr<kernels::Device>> devices() {
  std::vector<std::unique_ptr<kernels::Device>> found;
  found.push_back(kernels::Device::emulated());
  if (kernels::device_count() > 0) found.push_back(kernels::Device::open(0).value());
  return found;
}

// The trainer in main memory has its gradients from libtorch.
#define NEEDS_LIBTORCH() \
  if (!Network::load().ok()) GTEST_SKIP() << "no libtorch"

// |a - b| / |b|.
double distance(std::span<const float> a, std::span<const float> b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
    size += double{b[i]} * double{b[i]};
  }
  return std::sqrt(difference / std::max(size, 1e-30));
}

std::span<const float> floats(const TrainerSnapshot::Buffer& buffer) {
  return {reinterpret_cast<const float*>(buffer.view().data()), buffer.view().size() / sizeof(float)};
}

// After one step the first moment of a weight is its gradient, scaled alike on both sides. Both round factors
// of products to bf16 (2^-9 each); the device rounds what passes between kernels too, and adds it up in the
// residual stream, so that a gradient differs by some such errors that are independent: about 1%. Gradients
// of q and k are small differences of what is rounded (of a softmax that is nearly even), with a larger share
// of it. An error in a formula shows as 10% and more of some weight.
void compare_gradients(OnDevice& device, OnCpu& cpu, const char* name) {
  const TrainerSnapshot got = device.trainer.snapshot(), want = cpu.trainer.snapshot();
  const std::vector<FlatWeight> weights = flat_weights(cpu.trainer.decoder());
  ASSERT_EQ(got.state.size(), want.state.size());
  EXPECT_EQ(got.state[0].name, "first_moments");
  for (const FlatWeight& w : weights) {
    const auto part = [&](const TrainerSnapshot& s) {
      return floats(s.state[0]).subspan(static_cast<size_t>(w.offset), static_cast<size_t>(w.count));
    };
    EXPECT_LT(distance(part(got), part(want)), 0.05) << name << ", " << w.name;
  }
}

// Losses as the meshes of the slow tests have them in bf16; norms likewise. From step to step AdamW turns
// small gradients that differ into updates of the size of the rate, so that the bound is of the tenth step.
TEST(DeviceTrainer, FollowsTheTrainerInMainMemory) {
  NEEDS_LIBTORCH();
  ThreadPool pool(2);
  for (const auto& device : devices()) {
    for (const SmallModel& model : drawn(small_models(), 1)) {
      SCOPED_TRACE(fmt::format("{} on {}", model.name, device->name()));
      OnDevice ours(small_config(), model.decoder, pool, *device);
      OnCpu theirs(small_config(), model.decoder, pool);
      EXPECT_EQ(ours.trainer.sha256(), theirs.trainer.sha256()) << "they begin with the same weights";
      for (int i = 0; i < 10; ++i) {
        const StepResult got = ours.step(), want = theirs.step();
        EXPECT_NEAR(got.loss, want.loss, 1e-2) << i;
        EXPECT_NEAR(got.gradient_norm / want.gradient_norm, 1, 2e-2) << i;
        EXPECT_EQ(got.lr, want.lr);
        EXPECT_EQ(got.tokens, want.tokens);
        if (i == 0) compare_gradients(ours, theirs, model.name);
      }
    }
  }
}

TEST(DeviceTrainer, SeesTheSamplesOfAPackedSequenceApart) {
  NEEDS_LIBTORCH();
  ThreadPool pool(2);
  for (const auto& device : devices()) {
    for (const SmallModel& model : drawn(small_models(), 3)) {
      SCOPED_TRACE(model.name);
      OnDevice ours(small_config(), model.decoder, pool, *device);
      OnCpu theirs(small_config(), model.decoder, pool);
      const StepResult got = ours.step(true), want = theirs.step(true);
      EXPECT_NEAR(got.loss, want.loss, 5e-3);
      EXPECT_NEAR(got.gradient_norm / want.gradient_norm, 1, 2e-2);
      compare_gradients(ours, theirs, model.name);
    }
  }
}

// The same source, compiled for the one and for the other: products sum in another order, exp and log differ
// in last bits.
TEST(DeviceTrainer, OnAGpuItFollowsTheEmulatedDevice) {
  if (kernels::device_count() == 0) GTEST_SKIP() << "no GPU here";
  ThreadPool pool(2);
  const auto gpu = kernels::Device::open(0).value(), emulated = kernels::Device::emulated();
  for (const SmallModel& model : small_models()) {
    for (const bool packed : {false, true}) {
      SCOPED_TRACE(model.name);
      OnDevice ours(small_config(), model.decoder, pool, *gpu),
          theirs(small_config(), model.decoder, pool, *emulated);
      for (int i = 0; i < 10; ++i) {
        const StepResult got = ours.step(packed), want = theirs.step(packed);
        EXPECT_NEAR(got.loss, want.loss, i == 0 ? 2e-3 : 1e-2) << i;
        EXPECT_NEAR(got.gradient_norm / want.gradient_norm, 1, 2e-2) << i;
      }
    }
  }
}

// Rows are computed alike in any company; gradients of weights are added up in another order, in f32.
TEST(DeviceTrainer, MicrobatchesAddUpToTheBatch) {
  ThreadPool pool(2);
  for (const auto& device : devices()) {
    const SmallModel model = small_models()[0];
    OnDevice at_once(small_config(), model.decoder, pool, *device);
    OnDevice in_parts(small_config("{batch: {micro_sequences: 3}}"), model.decoder, pool, *device);
    for (int i = 0; i < 3; ++i) {
      const StepResult whole = at_once.step(), parts = in_parts.step();
      // A GPU multiplies another number of rows by another kernel, with other last bits.
      const bool alike = i == 0 && device->is_emulated();
      EXPECT_NEAR(parts.loss, whole.loss, alike ? 1e-6 : 2e-3) << i;
      EXPECT_NEAR(parts.gradient_norm / whole.gradient_norm, 1, alike ? 1e-5 : 5e-3) << i;
    }
  }
}

TEST(DeviceTrainer, ForgettingAndComputingAgainHasTheSameBits) {
  ThreadPool pool(2);
  for (const auto& device : devices()) {
    for (const SmallModel& model : drawn(std::vector{small_models()[0], small_models()[2]}, 1)) {
      OnDevice all(small_config(), model.decoder, pool, *device);
      for (int i = 0; i < 2; ++i) all.step();
      for (const char* recompute : {"[norm]", "[swiglu]", "selective", "full"}) {
        OnDevice some(small_config(fmt::format("{{recompute: {}}}", recompute)), model.decoder, pool,
                      *device);
        EXPECT_LT(some.trainer.plan().bytes(), all.trainer.plan().bytes());
        for (int i = 0; i < 2; ++i) some.step();
        EXPECT_EQ(some.trainer.sha256(), all.trainer.sha256()) << model.name << ", " << recompute;
      }
    }
  }
}

// A graph is launched in one and its kernels are started one by one in the other.
TEST(DeviceTrainer, RestoredItGoesOnWithTheSameBits) {
  ThreadPool pool(2);
  for (const auto& device : devices()) {
    for (const char* yaml : drawn<const char*>(
             {"{batch: {micro_sequences: 2}}", "{optimizer: {type: adam, clip_norm: 0}}",
              "{optimizer: {no_decay: [], groups: [{match: norm, lr_scale: 0.5, betas: [0.8, 0.9]}]}}",
              "{schedule: {type: one_cycle}, guard: {on_spike: skip, window: 2}}"},
             1)) {
      SCOPED_TRACE(yaml);
      const SmallModel model = small_models()[2];
      OnDevice straight(small_config(yaml), model.decoder, pool, *device);
      OnDevice first(small_config(yaml), model.decoder, pool, *device);
      OnDevice second(small_config(yaml), model.decoder, pool, *device);
      for (int i = 0; i < 5; ++i) straight.step();
      for (int i = 0; i < 4; ++i) first.step();
      ASSERT_TRUE(second.trainer.restore(first.trainer.snapshot().bytes()).ok());
      EXPECT_EQ(second.trainer.next_step(), 4);
      const StepResult last = second.step();
      EXPECT_EQ(second.trainer.sha256(), straight.trainer.sha256());
      EXPECT_TRUE(std::isfinite(last.loss));
    }
  }
}

// The same state on either side, there and back, and both go on from it.
TEST(DeviceTrainer, SnapshotsPassToATrainerInMainMemoryAndBack) {
  NEEDS_LIBTORCH();
  ThreadPool pool(2);
  for (const auto& device : devices()) {
    for (const SmallModel& model : drawn(small_models(), 1)) {
      SCOPED_TRACE(model.name);
      OnDevice ours(small_config(), model.decoder, pool, *device);
      OnCpu theirs(small_config(), model.decoder, pool);
      for (int i = 0; i < 2; ++i) ours.step();
      const std::string state = ours.trainer.snapshot().bytes();
      ASSERT_TRUE(theirs.trainer.restore(state).ok());
      EXPECT_EQ(theirs.trainer.sha256(), ours.trainer.sha256());
      EXPECT_EQ(theirs.trainer.snapshot().bytes(), state);
      EXPECT_NEAR(theirs.step().loss, ours.step().loss, 5e-3);
      ASSERT_TRUE(ours.trainer.restore(theirs.trainer.snapshot().bytes()).ok());
      EXPECT_EQ(ours.trainer.sha256(), theirs.trainer.sha256());
      EXPECT_EQ(ours.trainer.next_step(), theirs.trainer.next_step());
      EXPECT_NEAR(ours.step().loss, theirs.step().loss, 5e-3);
    }
    // What is refused changes nothing.
    OnDevice llama(small_config(), small_models()[0].decoder, pool, *device);
    OnDevice qwen(small_config(), small_models()[2].decoder, pool, *device);
    const std::string before = llama.trainer.sha256();
    EXPECT_EQ(llama.trainer.restore(qwen.trainer.snapshot().bytes()).error().code, ErrorCode::kInvalid);
    EXPECT_EQ(llama.trainer.restore("no state").error().code, ErrorCode::kCorrupt);
    EXPECT_EQ(llama.trainer.sha256(), before);
  }
}

// Where data ranks lay the state out in buckets of equal parts, and write a part each of a checkpoint.
TEST(DeviceTrainer, LaysOutAReplicasStateAsATrainerInMainMemory) {
  NEEDS_LIBTORCH();
  ThreadPool pool(2);
  const auto device = kernels::Device::emulated();
  const SmallModel model = small_models()[0];
  TrainConfig config = small_config("{mesh: {data: 3}}");
  const Layout layout = make_layout(config, model::describe(model.decoder)).value();
  Trainer theirs(config, layout, layout.place(1), pool);
  const auto ours = DeviceTrainer::open(on_gpu(config), layout, layout.place(1), pool, *device).value();
  theirs.initialize(7), ours->initialize(7);
  EXPECT_EQ(ours->snapshot().bytes(), theirs.snapshot().bytes());
  TrainConfig of_shards = config;
  of_shards.mesh.zero = 1;
  const Layout shared = make_layout(of_shards, layout.decoder).value();
  for (const int rank : {0, 2}) {
    const MeshPlace place = shared.place(rank);
    const Shares shares(shared.local(place), shared.share_of(place));
    TrainerSnapshot got, want;
    for (int time = 0; time < 2; ++time) ours->snapshot(shares, got);  // also into memory of before
    theirs.snapshot(shares, want);
    EXPECT_EQ(got.bytes(), want.bytes()) << rank;
  }
}

TEST(DeviceTrainer, EvaluatesAsTheTrainerInMainMemory) {
  NEEDS_LIBTORCH();
  ThreadPool pool(2);
  const TempFolder folder;
  auto writer = data::ShardWriter::create(folder.path(), {.vocab_size = kTestVocabulary}).value();
  Philox rng(5);
  std::vector<int32_t> document(1000);
  for (int32_t& token : document) token = static_cast<int32_t>(rng.below(kTestVocabulary));
  ASSERT_TRUE(writer.add(document).ok());
  ASSERT_TRUE(writer.seal().ok());
  const data::TokenShards shards = data::TokenShards::open(folder.path()).value();
  const data::Sampler sampler(shards, {.batch = 1, .length = kTestLength});
  for (const auto& device : devices()) {
    OnDevice ours(small_config("{batch: {micro_sequences: 3}}"), small_models()[0].decoder, pool, *device);
    OnCpu theirs(small_config(), small_models()[0].decoder, pool);
    const double got = ours.trainer.evaluate(sampler, 11, {}).value();
    EXPECT_NEAR(got, theirs.trainer.evaluate(sampler, 11, {}).value(), 5e-3);
    const std::string before = ours.trainer.sha256();
    ours.step();
    EXPECT_NE(ours.trainer.evaluate(sampler, 11, {}).value(), got);
    EXPECT_NE(ours.trainer.sha256(), before);
  }
}

// The guard decides as in main memory, before the update.
TEST(DeviceTrainer, SkipsWhatTheGuardCatches) {
  ThreadPool pool(2);
  for (const auto& device : devices()) {
    for (const char* on_spike : {"ignore", "skip"}) {
      OnDevice model(small_config(fmt::format("{{guard: {{on_nan: skip, on_spike: {}, loss_factor: 1.5, "
                                              "norm_factor: 0, window: 1}}}}",
                                              on_spike)),
                     small_models()[0].decoder, pool, *device);
      EXPECT_FALSE(model.step().skipped);
      TrainerSnapshot state = model.trainer.snapshot();
      const TrainerSnapshot sound = state;
      state.weights[0] = std::nanf("");
      ASSERT_TRUE(model.trainer.restore(state.bytes()).ok());
      data::Batch batch = small_batch(1);
      batch.tokens[0] = 0;  // whose row is NaN
      const StepResult nan = model.trainer.step(batch, {}).value();
      EXPECT_EQ(nan.anomaly, Anomaly::kNan);
      EXPECT_TRUE(nan.skipped);
      EXPECT_EQ(nan.events, 1);
      const TrainerSnapshot after = model.trainer.snapshot();
      EXPECT_EQ(after.updates, sound.updates);
      EXPECT_EQ(after.next_step, sound.next_step + 1);
      EXPECT_EQ(after.sha256(), state.sha256()) << "no weight and no moment has changed";
    }
  }
}

// Ten times the embedding is a loss far above the last one.
TEST(DeviceTrainer, SkipsASpike) {
  ThreadPool pool(2);
  const auto device = kernels::Device::emulated();
  OnDevice model(small_config("{guard: {on_spike: skip, loss_factor: 1.5, norm_factor: 0, window: 1}}"),
                 small_models()[0].decoder, pool, *device);
  model.step();
  TrainerSnapshot state = model.trainer.snapshot();
  for (size_t i = 0; i < static_cast<size_t>(kTestVocabulary * 64); ++i) state.weights[i] *= 40;
  ASSERT_TRUE(model.trainer.restore(state.bytes()).ok());
  const StepResult result = model.step();
  EXPECT_EQ(result.anomaly, Anomaly::kSpike) << result.loss;
  EXPECT_EQ(model.trainer.snapshot().sha256(), state.sha256());
}

TEST(DeviceTrainer, WhatDoesNotFitSaysWhatWould) {
  ThreadPool pool(1);
  const SmallModel model = small_models()[0];
  const Layout layout = make_layout(small_config(), model::describe(model.decoder)).value();
  const auto large = kernels::Device::emulated();
  const int64_t bytes =
      DeviceTrainer::open(on_gpu(small_config()), layout, {}, pool, *large).value()->plan().bytes();
  const auto small = kernels::Device::emulated(bytes - 1);
  const auto refused = DeviceTrainer::open(on_gpu(small_config()), layout, {}, pool, *small);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kFull);
  EXPECT_THAT(refused.error().message, testing::HasSubstr("of weights, gradients and optimizer state"));
  EXPECT_THAT(refused.error().message, testing::HasSubstr("set batch.micro_sequences to 2"));
  auto fits = small_config("{batch: {micro_sequences: 2}}");
  EXPECT_TRUE(DeviceTrainer::open(on_gpu(fits), layout, {}, pool, *small).ok());
  const auto tiny = kernels::Device::emulated(1 << 16);
  EXPECT_THAT(DeviceTrainer::open(on_gpu(small_config()), layout, {}, pool, *tiny).error().message,
              testing::HasSubstr("too large"));
}

}  // namespace
}  // namespace flywheel::train
