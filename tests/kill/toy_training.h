// A training run in miniature, for tests that hurt its processes: data parallel SGD on a linear model, with a
// replicated model, a per-rank generator state, and an all-reduce in every step.
#pragma once

#include <cstdio>
#include <cstring>
#include <thread>

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "runtime/collectives.h"
#include "runtime/controller.h"
#include "runtime/operation.h"
#include "runtime/wire.h"
#include "runtime/worker.h"

namespace flywheel::runtime {

constexpr int kWeights = 4096;

class ToyModel : public State {
 public:
  const char* type() const override { return "toy.model"; }
  Sharing sharing() const override { return Sharing::kReplicated; }
  std::function<Rope()> freeze() override {
    return
        [copy = weights] { return std::string(reinterpret_cast<const char*>(copy.data()), copy.size() * 4); };
  }
  Result<void> restore(std::string_view bytes) override {
    weights.resize(bytes.size() / 4);
    std::memcpy(weights.data(), bytes.data(), weights.size() * 4);
    return {};
  }
  std::vector<float> weights = std::vector<float>(kWeights, 0.5f);
};

// What this rank alone has: a chain over all that it has seen. A step lost, doubled or out of order shows.
class ToySeen : public State {
 public:
  const char* type() const override { return "toy.seen"; }
  std::function<Rope()> freeze() override {
    return [copy = chain] { return encode(copy); };
  }
  Result<void> restore(std::string_view bytes) override {
    ASSIGN_OR_RETURN(chain, decode<uint64_t>(bytes));
    return {};
  }
  uint64_t chain = 0;
};

namespace toy {
REGISTER_STATE("toy.model", ToyModel);
REGISTER_STATE("toy.seen", ToySeen);

REGISTER_OPERATION("toy.create", Kind::kStateful, [](Call& call) -> Result<std::string> {
  RETURN_IF_ERROR(call.put_state("model", std::make_unique<ToyModel>()));
  RETURN_IF_ERROR(call.put_state("seen", std::make_unique<ToySeen>()));
  return std::string();
});

REGISTER_OPERATION("toy.step", Kind::kStateful, [](Call& call) -> Result<std::string> {
  ASSIGN_OR_RETURN(ToyModel * model, call.state<ToyModel>("model"));
  ASSIGN_OR_RETURN(ToySeen * seen, call.state<ToySeen>("seen"));
  ASSIGN_OR_RETURN(Communicator * group, call.communicator("data"));
  Philox rng = call.generator();
  std::vector<float> gradient(model->weights.size());
  for (size_t i = 0; i < gradient.size(); ++i) {
    gradient[i] = model->weights[i] * rng.uniform() - 0.25f * static_cast<float>(call.cursor() % 3);
  }
  RETURN_IF_ERROR(group->run(AllReduce{of(std::span<const float>(gradient)), of(std::span<float>(gradient))},
                             call.deadline()));
  float loss = 0;
  for (size_t i = 0; i < gradient.size(); ++i) {
    model->weights[i] -= 0.01f * gradient[i];
    loss += model->weights[i] * model->weights[i];
  }
  seen->chain = seen->chain * 6364136223846793005u + static_cast<uint64_t>(call.cursor()) + rng.next_u64();
  std::this_thread::sleep_for(std::chrono::milliseconds(2));  // so that there is time to be hurt in
  return encode(static_cast<double>(loss));
});

REGISTER_OPERATION("toy.digest", Kind::kStateful, [](Call& call) -> Result<std::string> {
  ASSIGN_OR_RETURN(ToyModel * model, call.state<ToyModel>("model"));
  ASSIGN_OR_RETURN(ToySeen * seen, call.state<ToySeen>("seen"));
  Sha256 sha;
  sha.update({reinterpret_cast<const char*>(model->weights.data()), model->weights.size() * 4});
  sha.update(encode(seen->chain));
  return sha.hex();
});
}  // namespace toy

// The controller's program: SHA-256 over every loss and every rank's model and chain at the end.
// `at(step, mesh)` is called before each step is issued.
inline Result<std::string> toy_training(const Mesh& mesh, int steps,
                                        const std::function<void(int, const Mesh&)>& at = {}) {
  Sha256 sha;
  RETURN_IF_ERROR(mesh.call("toy.create").wait(Deadline::after_ms(30'000)));
  std::vector<Future> losses;
  for (int step = 0; step < steps; ++step) {
    if (at) at(step, mesh);
    losses.push_back(mesh.call("toy.step", "", {.want_value = true, .cursor = step}));
    if (step >= 4) {  // a few steps ahead, as a real one
      ASSIGN_OR_RETURN(const std::string loss,
                       losses[static_cast<size_t>(step) - 4].get(0, Deadline::after_ms(60'000)));
      sha.update(loss);
    }
  }
  const Future digest = mesh.call("toy.digest");
  for (int rank = 0; rank < mesh.shape().size(); ++rank) {
    ASSIGN_OR_RETURN(const std::string hex, digest.get(rank, Deadline::after_ms(60'000)));
    sha.update(hex);
  }
  return sha.hex();
}

inline ControllerOptions toy_options(const std::string& folder) {
  ControllerOptions options;
  options.folder = folder;
  options.run = "toy";
  options.seed = 20;
  options.watermark_interval_ms = 100;
  options.durable_interval_ms = 400;
  return options;
}

}  // namespace flywheel::runtime
