// Collectives over a mesh with several named axes: eight workers as data=2 tensor=2 pipeline=2 (and two axes
// of size 1), a communicator for each axis and for products of axes, several of them at work at once.
#include <gtest/gtest.h>

#include <csignal>
#include <cstring>
#include <thread>

#include "base/file.h"
#include "base/hash.h"
#include "runtime/collectives.h"
#include "runtime/controller.h"
#include "runtime/operation.h"
#include "runtime/wire.h"

namespace flywheel::runtime {
namespace {

constexpr int kCount = 5000;
const std::vector<Axis> kAxes = {{"data", 2}, {"tensor", 2}, {"pipeline", 2}, {"expert", 1}, {"context", 1}};

std::vector<float> numbers(uint64_t key, int rank) {
  Philox rng(key, static_cast<uint64_t>(rank));
  std::vector<float> all(kCount);
  for (float& x : all) x = rng.uniform() - 0.5f;
  return all;
}
std::string bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

REGISTER_OPERATION("axes.sum", Kind::kPure, [](Call& call) -> Result<std::string> {
  ASSIGN_OR_RETURN(Communicator * group, call.communicator(std::string(call.args())));
  std::vector<float> x = numbers(call.generator_key(), call.place().rank);
  RETURN_IF_ERROR(group->run(AllReduce{of(std::span<const float>(x)), of(std::span(x))}, call.deadline()));
  return bytes_of(x);
});

// A sum along data is begun on half of the ranks before, on the others after, the gathering along tensor that
// all of them wait for: with one at a time on a worker nothing would ever end.
REGISTER_OPERATION("axes.two_at_once", Kind::kPure, [](Call& call) -> Result<std::string> {
  ASSIGN_OR_RETURN(Communicator * data, call.communicator("data"));
  ASSIGN_OR_RETURN(Communicator * tensor, call.communicator("tensor"));
  const Place& place = call.place();
  const bool early = place.shape.coordinate(place.rank, "data").value() == 0;
  std::vector<float> x = numbers(call.generator_key(), place.rank), sum(kCount), all(2 * kCount);
  const AllReduce reduce{of(std::span<const float>(x)), of(std::span(sum))};
  const AllGather gather{of(std::span<const float>(x)), of(std::span(all))};
  std::optional<Pending> summing;
  if (early) summing = data->start(reduce, call.deadline());
  const Pending gathering = tensor->start(gather, call.deadline());
  RETURN_IF_ERROR(gathering.wait());
  if (!early) summing = data->start(reduce, call.deadline());
  RETURN_IF_ERROR(summing->wait());
  return bytes_of(sum) + bytes_of(all);
});

// Forward and backward of four micro-batches between two stages, everything under way at once: activations go
// down while gradients come up.
REGISTER_OPERATION("axes.pipeline", Kind::kPure, [](Call& call) -> Result<std::string> {
  ASSIGN_OR_RETURN(Communicator * stages, call.communicator("pipeline"));
  constexpr int kBatches = 4;
  const std::vector<float> x = numbers(call.generator_key(), call.place().rank);
  const bool first = stages->rank() == 0;
  std::vector<std::vector<float>> out(kBatches), in(kBatches, std::vector<float>(kCount));
  std::vector<Pending> under_way;
  for (size_t b = 0; b < kBatches; ++b) {
    out[b] = x;
    for (float& value : out[b]) value *= static_cast<float>(b + 1);
    under_way.push_back(
        stages->start(Send{of(std::span<const float>(out[b])), first ? 1 : 0}, call.deadline()));
    under_way.push_back(stages->start(Recv{of(std::span(in[b])), first ? 1 : 0}, call.deadline()));
  }
  for (const Pending& pending : under_way) RETURN_IF_ERROR(pending.wait());
  std::string all;
  for (const auto& batch : in) all += bytes_of(batch);
  return all;
});

class MeshAxes : public testing::Test {
 protected:
  void SetUp() override {
    ControllerOptions options;
    options.folder = folder_ / "run";
    options.run = "axes";
    options.seed = 11;
    options.sync = LogSync::kProcess;
    controller_ = Controller::open(options).value();
    mesh_ = controller_->mesh("m", kAxes).value();
  }
  // What a rank must get: the sum over its group in rank order, in f32.
  static std::vector<float> sum_over(uint64_t key, const std::vector<int>& ranks) {
    std::vector<float> sum = numbers(key, ranks[0]);
    for (size_t r = 1; r < ranks.size(); ++r) {
      const auto more = numbers(key, ranks[r]);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
    }
    return sum;
  }
  int peer(int rank, const char* axis) const {
    const auto ranks = mesh_.shape().group(rank, axis).value();
    return ranks[0] == rank ? ranks[1] : ranks[0];
  }

  TempFolder folder_;
  std::unique_ptr<Controller> controller_;
  Mesh mesh_;
};

TEST_F(MeshAxes, SumsAlongEachAxisAndAlongProductsOfAxes) {
  uint64_t key = 100;
  for (const char* axes : {"data", "tensor", "pipeline", "expert", "data,tensor", "pipeline,tensor",
                           "data,pipeline", "context,data", "tensor,pipeline,data", ""}) {
    const Future sum = mesh_.call("axes.sum", axes, {.want_value = true, .generator_key = ++key});
    for (int rank = 0; rank < 8; ++rank) {
      const auto got = sum.get(rank, Deadline::after_ms(60'000));
      ASSERT_TRUE(got.ok()) << axes << ": " << got.error().to_string();
      EXPECT_EQ(*got, bytes_of(sum_over(key, mesh_.shape().group(rank, axes).value())))
          << axes << " " << rank;
    }
  }
  const auto wrong = mesh_.call("axes.sum", "data,width").wait(Deadline::after_ms(60'000));
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.error().message.find("has no axis width"), std::string::npos) << wrong.error().message;
}

TEST_F(MeshAxes, ASliceSumsAmongItself) {
  const Mesh stage = mesh_.slice({{"pipeline", 1}}).value();
  const Future sum = stage.call("axes.sum", "tensor,data", {.want_value = true, .generator_key = 3});
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(sum.get(i, Deadline::after_ms(60'000)).value(), bytes_of(sum_over(3, {1, 3, 5, 7})));
  }
}

TEST_F(MeshAxes, TwoAxesAreAtWorkAtOnce) {
  const Future both =
      mesh_.call("axes.two_at_once", "", {.want_value = true, .deadline_ms = 10'000, .generator_key = 5});
  for (int rank = 0; rank < 8; ++rank) {
    const auto got = both.get(rank, Deadline::after_ms(60'000));
    ASSERT_TRUE(got.ok()) << got.error().to_string();
    const auto tensor = mesh_.shape().group(rank, "tensor").value();
    EXPECT_EQ(*got, bytes_of(sum_over(5, mesh_.shape().group(rank, "data").value())) +
                        bytes_of(numbers(5, tensor[0])) + bytes_of(numbers(5, tensor[1])));
  }
}

TEST_F(MeshAxes, PipelineNeighboursSendBothWaysAtOnce) {
  const Future passed = mesh_.call("axes.pipeline", "", {.want_value = true, .generator_key = 6});
  for (int rank = 0; rank < 8; ++rank) {
    const auto got = passed.get(rank, Deadline::after_ms(60'000));
    ASSERT_TRUE(got.ok()) << got.error().to_string();
    std::string wanted;
    for (int b = 1; b <= 4; ++b) {
      auto x = numbers(6, peer(rank, "pipeline"));
      for (float& value : x) value *= static_cast<float>(b);
      wanted += bytes_of(x);
    }
    EXPECT_EQ(*got, wanted);
  }
}

TEST_F(MeshAxes, ALostWorkerBreaksAllGroupsOnceAndTheyFormAgain) {
  std::vector<Future> sums;
  const auto run = [&](uint64_t key) {
    for (const char* axes : {"data", "tensor,pipeline", ""})
      sums.push_back(mesh_.call("axes.sum", axes, {.want_value = true, .generator_key = key}));
  };
  for (uint64_t key = 0; key < 10; ++key) run(key);
  ASSERT_TRUE(sums.back().wait(Deadline::after_ms(60'000)).ok());
  const auto victim = static_cast<pid_t>(mesh_.status().pids[5]);
  ASSERT_GT(victim, 0);  // 0 would be all of us
  ::kill(victim, SIGKILL);
  for (uint64_t key = 10; key < 20; ++key) run(key);
  for (size_t i = 0; i < sums.size(); ++i) {
    const char* axes = std::array{"data", "tensor,pipeline", ""}[i % 3];
    for (const int rank : {0, 5}) {
      const auto got = sums[i].get(rank, Deadline::after_ms(60'000));
      ASSERT_TRUE(got.ok()) << got.error().to_string();
      EXPECT_EQ(*got, bytes_of(sum_over(i / 3, mesh_.shape().group(rank, axes).value())));
    }
  }
  EXPECT_EQ(mesh_.status().recoveries, 1);
}

}  // namespace
}  // namespace flywheel::runtime
