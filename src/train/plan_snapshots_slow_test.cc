// The memory that workers of a run take, as the system counts it, against the plan.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <map>
#include <thread>

#include "base/cases_for_tests.h"
#include "base/file.h"
#include "base/json.h"
#include "base/slowness_for_tests.h"
#include "train/plan_job.h"
#include "train/side_for_benches.h"

namespace flywheel::train {
namespace {

// Main memory of a process but for what is mapped from files.
double anonymous_bytes(int64_t pid) {
  std::ifstream status(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return 1024 * std::strtod(line.c_str() + 8, nullptr);  // kB
  }
  return 0;
}

// The most that each of some processes has, looked at every 2 ms.
class Watch {
 public:
  explicit Watch(const std::vector<int64_t>& pids) : pids_(pids), most_(pids.size()) {}
  std::vector<double> end() {
    thread_.request_stop();
    thread_.join();
    return most_;
  }

 private:
  void look(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      for (size_t i = 0; i < pids_.size(); ++i) most_[i] = std::max(most_[i], anonymous_bytes(pids_[i]));
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  std::vector<int64_t> pids_;
  std::vector<double> most_;
  std::jthread thread_{[this](const std::stop_token& stop) { look(stop); }};
};

// Buffers of more than 32 MB each, which glibc gives back to the system; and few activations, whose holes in
// its heap are not foretold (docs/planning.md).
TEST(PlanSnapshots, WorkersOfARunTakeWhatIsForetold) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer has memory of its own";
#endif
  constexpr int64_t kVocabulary = 4096;
  const TempFolder folder;
  ASSERT_TRUE(write_random_tokens(folder / "tokens", 100'000, kVocabulary).ok());
  struct Case {
    int64_t zero = 0;
    Masters masters = Masters::kF32;
  };
  for (const auto& [zero, masters] : drawn(std::vector{Case{0}, Case{2}, Case{0, Masters::kNone}}, 1)) {
    SCOPED_TRACE(fmt::format("ZeRO {}, masters {}", zero, config_name(masters)));
    TrainConfig config;
    config.steps = 100'000;
    config.model = {.hidden_size = 512, .num_layers = zero == 0 ? 3 : 6, .num_heads = 8, .max_positions = 64};
    config.data.train = folder / "tokens";
    config.batch = {.sequences = 2, .length = 64};
    config.mesh = {.data = 2, .zero = zero, .threads = 1};
    config.optimizer.masters = masters;
    const Inputs inputs{.data = {config.data.train, ""},
                        .decoder = decoder_config(config.model, kVocabulary)};
    const Layout layout = make_layout(config, model::describe(inputs.decoder)).value();
    const std::string run = folder / fmt::format("zero-{}-masters-{}", zero, config_name(masters));
    Side side = open_side(config, inputs, layout, run, 100).value();
    const runtime::Mesh& mesh = side.workers.all();
    Watch watch(mesh.status().pids);
    const Deadline deadline = Deadline::after_ms(static_cast<int64_t>(180'000 * kSlowness));
    // From the second on two generations are there.
    while (mesh.status().watermarks < 2 && !deadline.expired()) ASSERT_TRUE(side.run(2).ok());
    ASSERT_GE(mesh.status().watermarks, 2u) << "snapshots did not come";
    ASSERT_TRUE(side.run(2).ok());
    const std::string checkpoint = run + "/checkpoint";
    ASSERT_TRUE(mesh.call(kSave, Json{{"folder", checkpoint}, {"loss", 1.0}}.dump()).wait().ok());
    ASSERT_TRUE(side.run(2).ok());
    const auto saved = side.workers.first().call(kSaved, checkpoint, {.want_value = true}).get(0);
    ASSERT_TRUE(saved.ok()) << saved.error().message;
    EXPECT_EQ(saved->find("error"), std::string::npos) << *saved;
    const std::vector<double> most = watch.end();

    Planner planner(job_of(config, inputs.decoder), {.name = "test",
                                                     .kind = DeviceKind::kCpu,
                                                     .f32_tflops = 1,
                                                     .bf16_tflops = 1,
                                                     .memory_gb = 1000,
                                                     .memory_gb_s = 10,
                                                     .host_gb_s = 1});
    const MemoryByKind m = planner.predict(mesh_of(config)).memory;
    for (size_t rank = 0; rank < most.size(); ++rank) {
      const double foretold = m.total();
      std::printf(
          "ZeRO %ld, masters %s, rank %zu: measured %.1f MB, foretold %.1f (%+.1f%%); snapshots %.1f, "
          "checkpoint %.1f, "
          "program %.1f\n",
          zero, config_name(masters), rank, most[rank] / 1e6, foretold / 1e6,
          100 * (foretold / most[rank] - 1), m.snapshots / 1e6, m.checkpoint / 1e6, m.program / 1e6);
      EXPECT_GT(foretold / most[rank], 0.85);
      EXPECT_LT(foretold / most[rank], 1.15);
      EXPECT_GT(most[rank], foretold - m.snapshots / 2) << "the second generation is part of it";
    }
    ASSERT_TRUE(side.workers.controller().close().ok());
  }
}

}  // namespace
}  // namespace flywheel::train
