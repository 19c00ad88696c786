// Foretold memory against what real trainers and real worker processes take.
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <barrier>
#include <cstdio>
#include <random>
#include <thread>

#include "base/cases_for_tests.h"
#include "base/file.h"
#include "train/mesh_test_ranks.h"
#include "train/network.h"
#include "train/plan_job.h"
#include "train/weights_for_tests.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FLYWHEEL_COUNTS_BYTES 0  // a sanitizer has an allocator of its own
#else
#define FLYWHEEL_COUNTS_BYTES 1
#endif

// Every allocation of this program is counted, so that the most that there ever was is exact: who looks from
// time to time misses the peak, and all the more on a busy machine.
namespace {

std::atomic<int64_t> g_allocated = 0, g_most = 0;  // bytes

[[maybe_unused]] void count(int64_t bytes) {
  const int64_t now = g_allocated.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t most = g_most.load(std::memory_order_relaxed);
  while (now > most && !g_most.compare_exchange_weak(most, now, std::memory_order_relaxed)) continue;
}

}  // namespace

#if FLYWHEEL_COUNTS_BYTES
// glibc's own names for what stands behind malloc(); those below take the place of its public ones.
extern "C" {
void* __libc_malloc(size_t);            // NOLINT(bugprone-reserved-identifier)
void* __libc_calloc(size_t, size_t);    // NOLINT(bugprone-reserved-identifier)
void* __libc_realloc(void*, size_t);    // NOLINT(bugprone-reserved-identifier)
void* __libc_memalign(size_t, size_t);  // NOLINT(bugprone-reserved-identifier)
void __libc_free(void*);                // NOLINT(bugprone-reserved-identifier)

static int64_t bytes_of(void* block) {
  return static_cast<int64_t>(malloc_usable_size(block));
}
static void* counted(void* block) {
  count(bytes_of(block));
  return block;
}

void* malloc(size_t bytes) noexcept {
  return counted(__libc_malloc(bytes));
}
void* calloc(size_t count, size_t bytes) noexcept {
  return counted(__libc_calloc(count, bytes));
}
void* memalign(size_t alignment, size_t bytes) noexcept {
  return counted(__libc_memalign(alignment, bytes));
}
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  return counted(__libc_memalign(alignment, bytes));
}
int posix_memalign(void** block, size_t alignment, size_t bytes) noexcept {
  void* made = counted(__libc_memalign(alignment, bytes));
  if (!made) return ENOMEM;
  *block = made;
  return 0;
}
void* realloc(void* block, size_t bytes) noexcept {
  const int64_t before = bytes_of(block);
  void* made = __libc_realloc(block, bytes);
  if (made) count(bytes_of(made) - before);
  if (!made && bytes == 0) count(-before);
  return made;
}
void free(void* block) noexcept {
  count(-bytes_of(block));
  __libc_free(block);
}
}
#endif

namespace flywheel::train {
namespace {

model::DecoderConfig decoder_config(int64_t hidden, int64_t layers, int64_t vocab, bool tied) {
  model::DecoderConfig c;
  c.vocab_size = vocab, c.hidden_size = hidden, c.intermediate_size = hidden * 8 / 3 / 32 * 32;
  c.num_layers = layers, c.num_heads = hidden / 64, c.num_kv_heads = hidden / 128, c.head_dim = 64;
  c.max_positions = 1024, c.tied_embeddings = tied;
  return c;
}

// Of one worker: the most that it took, and what it keeps between steps.
struct Measured {
  double peak = 0, kept = 0;
};

// A process of its own, so that no earlier allocation is used again; the workers of the data axis are its
// threads, and an equal share of its bytes is a worker's.
Measured measured_bytes(const TrainConfig& config, const model::DecoderConfig& decoder,
                        const Base& base = nullptr) {
  EXPECT_TRUE(Network::load().ok());  // before the process begins: libtorch's own 50 MB are not the trainer's
  int pipe_ends[2];
  EXPECT_EQ(pipe(pipe_ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    const int64_t before = g_allocated;
    g_most = before;
    {
      const Layout layout = make_layout(config, decoder_of(config, decoder)).value();
      const int ranks = layout.shape.size();
      Board board;
      std::barrier everyone(ranks + 1);
      std::vector<std::jthread> threads;
      for (int rank = 0; rank < ranks; ++rank) {
        threads.emplace_back([&, rank] {
          RankLinks links(layout.shape, rank, board);
          ThreadPool pool(2);
          Trainer trainer(config, layout, layout.place(rank), pool);
          if (base != nullptr) CHECK(trainer.parameters().load_frozen(base, true).ok(), "base");
          trainer.parameters().initialize(config.seed);
          for (int64_t step = 0; step < 2; ++step) {
            const data::Batch batch =
                batch_of(config, decoder.vocab_size, step, layout.replica(layout.place(rank)));
            CHECK(trainer.step(batch, links.links).ok(), "step");
          }
          everyone.arrive_and_wait();
          everyone.arrive_and_wait();
        });
      }
      everyone.arrive_and_wait();
      const Measured taken{static_cast<double>(g_most - before) / ranks,
                           static_cast<double>(g_allocated - before) / ranks};
      CHECK(write(pipe_ends[1], &taken, sizeof taken) == sizeof taken, "pipe");
      everyone.arrive_and_wait();
    }
    _exit(0);
  }
  Measured taken;
  close(pipe_ends[1]);
  EXPECT_EQ(read(pipe_ends[0], &taken, sizeof taken), static_cast<ssize_t>(sizeof taken));
  close(pipe_ends[0]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  return taken;
}

MachineSpec house() {
  return {.name = "test",
          .kind = DeviceKind::kCpu,
          .f32_tflops = 1,
          .bf16_tflops = 1,
          .memory_gb = 100,
          .reserved_gb = 0,
          .memory_gb_s = 10,
          .host_gb_s = 1,
          .network_gb_s = 1};
}

TEST(PlanMemory, TrainersTakeWhatIsForetold) {
  if (!FLYWHEEL_COUNTS_BYTES) GTEST_SKIP() << "a sanitizer has an allocator of its own";
  struct Case {
    int64_t hidden, layers, vocab, sequences, length, micro;
    bool tied;
    Precision precision;
    Recompute recompute;
    OptimizerType optimizer = OptimizerType::kAdamW;
    double ema_decay = 0;
    int64_t data = 1, zero = 0, group = 0, tensor = 1;
    bool sequence_parallel = false;
    int64_t pipeline = 1;
    ScheduleKind schedule = ScheduleKind::kOneForwardOneBackward;
    int64_t experts = 0, expert = 1;  // in each layer; ranks that have some each
    int64_t context = 1;
    Masters masters = Masters::kF32;
  };
  using enum ScheduleKind;
  constexpr OptimizerType kAdamW = OptimizerType::kAdamW;
  using enum Recomputed;
  constexpr Recompute kNone = Recompute::kNone, kSelective = Recompute::kSelective, kFull = Recompute::kFull;
  constexpr Recompute kDense{kNorm, kSwiglu, kGateUp, kQkv, kAttention};
  constexpr Recompute kSparse{kNorm, kQkv, kAttention, kExperts};
  const std::vector<Case> cases = {
      Case{384, 6, 8192, 8, 256, 0, true, Precision::kBF16, kNone},
      Case{384, 6, 8192, 8, 256, 0, true, Precision::kF32, kNone},
      Case{256, 8, 4096, 16, 256, 4, false, Precision::kBF16, kNone},
      Case{512, 4, 16384, 2, 128, 1, true, Precision::kF32, kNone},
      Case{384, 6, 8192, 16, 256, 8, true, Precision::kBF16, kFull},
      Case{256, 12, 2048, 8, 512, 0, false, Precision::kF32, kFull},
      Case{256, 12, 2048, 8, 512, 0, false, Precision::kF32, kSelective},
      Case{384, 6, 8192, 16, 256, 8, true, Precision::kBF16, kSelective},
      Case{256, 8, 4096, 16, 256, 4, false, Precision::kFP8, kSelective},
      Case{128, 10, 1024, 16, 512, 0, true, Precision::kBF16, kNone},
      // Sets of operations: one, several, all.
      Case{256, 12, 2048, 8, 512, 0, false, Precision::kF32, {kAttention}},
      Case{384, 6, 8192, 16, 256, 8, true, Precision::kBF16, {kNorm, kQkv}},
      Case{256, 12, 2048, 8, 512, 0, false, Precision::kF32, {kNorm, kSwiglu, kGateUp}},
      Case{384, 6, 8192, 16, 256, 8, true, Precision::kBF16, {kSwiglu, kQkv, kAttention}},
      Case{256, 12, 2048, 8, 512, 0, false, Precision::kF32, kDense},
      Case{384, 6, 8192, 16, 256, 8, true, Precision::kBF16, kDense},
      Case{256, 8, 4096, 16, 256, 4, false, Precision::kFP8, kDense},
      Case{384, 6, 8192, 8, 256, 0, true, Precision::kBF16, kDense, kAdamW, 0, 2, 3},
      Case{512, 4, 4096, 4, 256, 0, true, Precision::kBF16, kDense, kAdamW, 0, 1, 0, 0, 2, true},
      Case{256, 8, 2048, 32, 256, 4, false, Precision::kBF16, kDense, kAdamW, 0, 1, 0, 0, 1, false, 2},
      Case{384, 6, 8192, 8, 256, 0, true, Precision::kFP16, kNone},
      Case{256, 8, 4096, 16, 256, 4, false, Precision::kFP8, kNone, OptimizerType::kLion},
      Case{512, 4, 16384, 2, 128, 1, true, Precision::kF32, kNone, OptimizerType::kAdamW8Bit},
      Case{512, 4, 16384, 2, 128, 1, true, Precision::kBF16, kNone, OptimizerType::kAdafactor},
      Case{512, 6, 4096, 2, 128, 1, false, Precision::kBF16, kNone, OptimizerType::kMuon, 0.9},
      Case{384, 6, 8192, 8, 256, 0, true, Precision::kBF16, kNone, kAdamW, 0, 2, 1},
      Case{384, 6, 8192, 8, 256, 0, true, Precision::kBF16, kNone, kAdamW, 0, 2, 2},
      Case{384, 6, 8192, 8, 256, 0, true, Precision::kBF16, kNone, kAdamW, 0, 2, 3},
      Case{256, 12, 4096, 4, 128, 1, false, Precision::kF32, kNone, kAdamW, 0.9, 4, 1},
      Case{256, 12, 4096, 4, 128, 1, false, Precision::kF32, kNone, kAdamW, 0.9, 4, 2},
      Case{256, 12, 4096, 4, 128, 1, false, Precision::kF32, kNone, kAdamW, 0.9, 4, 3},
      Case{384, 8, 4096, 16, 256, 2, true, Precision::kFP8, kFull, OptimizerType::kAdamW8Bit, 0, 2, 3},
      Case{384, 8, 2048, 8, 128, 1, false, Precision::kBF16, kFull, OptimizerType::kLion, 0, 4, 3, 2},
      Case{512, 4, 4096, 4, 256, 0, true, Precision::kBF16, kNone, kAdamW, 0, 1, 0, 0, 2, true},
      Case{512, 4, 4096, 4, 256, 0, true, Precision::kF32, kSelective, kAdamW, 0, 1, 0, 0, 2, false},
      Case{512, 4, 4096, 4, 256, 0, false, Precision::kBF16, kFull, kAdamW, 0, 1, 0, 0, 2, true},
      // Cut over tensor ranks, and put together for their step.
      Case{512, 4, 4096, 2, 64, 1, true, Precision::kBF16, kNone, OptimizerType::kMuon, 0, 1, 0, 0, 2},
      Case{512, 4, 8192, 2, 64, 1, true, Precision::kF32, kNone, OptimizerType::kAdafactor, 0, 1, 0, 0, 2},
      // Pipelines: what is live, what waits for its weights' gradients, what passes between stages.
      Case{256, 8, 2048, 32, 256, 4, false, Precision::kBF16, kNone, kAdamW, 0, 1, 0, 0, 1, false, 2},
      Case{256, 8, 2048, 32, 256, 4, false, Precision::kBF16, kFull, kAdamW, 0, 1, 0, 0, 1, false, 2},
      Case{256, 8, 2048, 32, 256, 4, false, Precision::kF32, kNone, kAdamW, 0, 1, 0, 0, 1, false, 2, kGPipe},
      Case{256, 8, 2048, 32, 256, 4, true, Precision::kF32, kFull, kAdamW, 0, 1, 0, 0, 1, false, 2, kGPipe},
      Case{256, 8, 2048, 32, 256, 4, false, Precision::kBF16, kNone, kAdamW, 0, 1, 0, 0, 1, false, 2,
           kZeroBubbleH1},
      Case{256, 8, 2048, 32, 256, 4, false, Precision::kBF16, kSelective, kAdamW, 0, 1, 0, 0, 1, false, 2,
           kZeroBubbleH1},
      Case{256, 8, 2048, 32, 256, 4, false, Precision::kBF16, kFull, kAdamW, 0, 1, 0, 0, 1, false, 2,
           kZeroBubbleH1},
      Case{256, 8, 2048, 32, 256, 4, false, Precision::kF32, kFull, kAdamW, 0, 1, 0, 0, 1, false, 2,
           kZeroBubbleV},
      Case{512, 8, 1024, 16, 64, 2, false, Precision::kBF16, kNone, kAdamW, 0, 2, 2, 0, 1, false, 2,
           kZeroBubbleH1},
      Case{512, 8, 1024, 16, 64, 2, false, Precision::kBF16, kFull, kAdamW, 0, 2, 3, 0, 1, false, 2,
           kZeroBubbleV},
      // Experts, on one worker and dealt out.
      Case{256, 6, 2048, 8, 256, 0,     true, Precision::kBF16,       kNone, kAdamW,
           0,   1, 0,    0, 1,   false, 1,    kOneForwardOneBackward, 8,     1},
      Case{256, 6, 2048, 8, 256, 0,     false, Precision::kF32,        kFull, kAdamW,
           0,   1, 0,    0, 1,   false, 1,     kOneForwardOneBackward, 4,     1},
      Case{256, 6, 2048, 8, 256, 0,     true, Precision::kBF16,       kNone, kAdamW,
           0,   1, 0,    0, 1,   false, 1,    kOneForwardOneBackward, 8,     2},
      Case{256, 6, 2048, 8, 256, 2,     false, Precision::kBF16,       kSelective, kAdamW,
           0,   1, 2,    0, 1,   false, 1,     kOneForwardOneBackward, 8,          4},
      Case{256, 6, 2048, 8, 256, 0,     true, Precision::kBF16,       {kExperts}, kAdamW,
           0,   1, 0,    0, 1,   false, 1,    kOneForwardOneBackward, 8,          1},
      Case{256, 6, 2048, 8, 256, 2,     false, Precision::kBF16,       kSparse, kAdamW,
           0,   1, 2,    0, 1,   false, 1,     kOneForwardOneBackward, 8,       4},
      // Sequences cut into pieces, whose keys go round.
      Case{256, 6, 2048, 2, 1024, 0,     true, Precision::kBF16,       kDense, kAdamW,
           0,   1, 0,    0, 1,    false, 1,    kOneForwardOneBackward, 0,      1,
           2},
      Case{256, 6, 2048, 2, 1024, 0,     true, Precision::kBF16,       kNone, kAdamW,
           0,   1, 0,    0, 1,    false, 1,    kOneForwardOneBackward, 0,     1,
           2},
      Case{256, 6, 2048, 1, 1024, 0,     false, Precision::kF32,        kSelective, kAdamW,
           0,   1, 2,    0, 1,    false, 1,     kOneForwardOneBackward, 0,          1,
           4},
      Case{256, 6, 2048, 2, 1024, 0,    true, Precision::kBF16,       kFull, kAdamW,
           0,   1, 0,    0, 2,    true, 1,    kOneForwardOneBackward, 0,     1,
           2},
      // Matrices that shares cut, and one rank puts together.
      Case{384, 6, 8192, 8, 256, 0, true, Precision::kBF16, kNone, OptimizerType::kMuon, 0, 2, 1},
      Case{384, 6, 8192, 8, 256, 0, true, Precision::kBF16, kNone, OptimizerType::kAdafactor, 0, 2, 2},
      // Weights in bf16 alone.
      Case{.hidden = 384,
           .layers = 6,
           .vocab = 8192,
           .sequences = 8,
           .length = 256,
           .micro = 0,
           .tied = true,
           .precision = Precision::kBF16,
           .recompute = kNone,
           .masters = Masters::kNone},
      Case{.hidden = 384,
           .layers = 6,
           .vocab = 8192,
           .sequences = 8,
           .length = 256,
           .micro = 0,
           .tied = true,
           .precision = Precision::kBF16,
           .recompute = kNone,
           .data = 2,
           .zero = 2,
           .masters = Masters::kNone}};
  for (const Case& c : drawn(cases, 2)) {  // all of them take minutes
    TrainConfig config;
    config.mesh.data = c.data, config.mesh.zero = c.zero, config.mesh.zero_group = c.group;
    config.mesh.expert = c.expert, config.mesh.context = c.context;
    config.mesh.tensor = c.tensor, config.mesh.sequence_parallel = c.sequence_parallel;
    config.mesh.pipeline = c.pipeline, config.mesh.schedule = c.schedule;
    config.precision = c.precision, config.recompute = c.recompute;
    config.optimizer.type = c.optimizer, config.optimizer.ema_decay = c.ema_decay;
    config.optimizer.masters = c.masters;
    config.batch = {.sequences = c.sequences, .length = c.length, .micro_sequences = c.micro};
    const model::DecoderConfig decoder = with_experts(decoder_config(c.hidden, c.layers, c.vocab, c.tied),
                                                      {.count = c.experts, .per_token = 2});
    const double measured = measured_bytes(config, decoder).peak;
    Job job = job_of(config, decoder);
    job.in_run = false;  // plan_snapshots_slow_test.cc has runs
    Planner planner(std::move(job), house());
    const PlanMesh mesh = mesh_of(config);
    const MemoryByKind m = planner.predict(mesh).memory;
    const double foretold = planner.bytes_of_all(mesh) / static_cast<double>(mesh.world());
    std::printf(
        "hidden %ld layers %ld batch %ldx%ld %s %s %s: measured %.1f MB, foretold %.1f (%+.1f%%); the "
        "fullest: "
        "parameters %.1f gradients %.1f optimizer %.1f activations %.1f buffers %.1f\n",
        c.hidden, c.layers, c.sequences, c.length, config_name(c.precision), config_name(c.optimizer),
        mesh.text().c_str(), measured / 1e6, foretold / 1e6, 100 * (foretold / measured - 1),
        m.parameters / 1e6, m.gradients / 1e6, m.optimizer / 1e6, m.activations / 1e6, m.buffers / 1e6);
    EXPECT_GT(foretold / measured, 0.95);
    // What is measured is the most of all workers at one time; those of a pipeline have theirs at several.
    EXPECT_LT(foretold / measured, c.pipeline > 1 ? 1.2 : 1.05);
  }
}

// The bytes of blocks are those of a file, which the test keeps for all ranks: not counted here.
TEST(PlanMemory, AdaptersTakeWhatIsForetold) {
  if (!FLYWHEEL_COUNTS_BYTES) GTEST_SKIP() << "a sanitizer has an allocator of its own";
  constexpr Recompute kNone = Recompute::kNone, kSelective = Recompute::kSelective, kFull = Recompute::kFull;
  struct Case {
    std::vector<std::string> targets;
    Precision precision;
    Recompute recompute;
    kernels::DType base;
    int64_t data = 1, zero = 0, tensor = 1;
  };
  const kernels::DType f32 = kernels::DType::kF32, q8_0 = kernels::DType::kQ8_0;
  const std::vector<std::string> all = {"all-linear"};
  for (const Case& c :
       {Case{all, Precision::kBF16, kNone, f32}, Case{{"q_proj", "v_proj"}, Precision::kF32, kNone, f32},
        Case{{"q_proj", "v_proj"}, Precision::kF32, {Recomputed::kGateUp}, f32},
        Case{all, Precision::kF32, kFull, f32}, Case{all, Precision::kBF16, kNone, q8_0},
        Case{all, Precision::kBF16, kSelective, f32, 2, 1},
        Case{all, Precision::kBF16, kNone, f32, 1, 0, 2}}) {
    if (!is_drawn(3)) continue;
    TrainConfig config;
    config.model.from = "a base";
    config.adapter = {.rank = 8, .targets = c.targets, .base = AdapterBase::kFloat};
    config.mesh = {.data = c.data, .tensor = c.tensor, .zero = c.zero};
    config.precision = c.precision, config.recompute = c.recompute;
    config.batch = {.sequences = 4 * c.data, .length = 256, .micro_sequences = 0};
    const model::DecoderConfig decoder = decoder_config(512, 6, 4096, true);
    const auto base = std::make_shared<RandomWeights>(model::describe(decoder), c.base);
    const double measured = measured_bytes(config, decoder, base).peak;
    Job job = job_of(config, decoder);
    job.in_run = false;
    const bool quantized = c.base == q8_0;
    if (quantized) job.blocks = {.layers = 34.0 / 32, .tables = 34.0 / 32};
    Planner planner(std::move(job), house());
    const MemoryByKind m = planner.predict(mesh_of(config)).memory;
    const double foretold = m.total() - (quantized ? m.base : 0);
    std::printf(
        "adapter, %s %s %s: measured %.1f MB, foretold %.1f (%+.1f%%); base %.1f parameters %.1f gradients "
        "%.1f optimizer %.1f activations %.1f buffers %.1f\n",
        config_name(c.precision), kernels::dtype_name(c.base), mesh_of(config).text().c_str(), measured / 1e6,
        foretold / 1e6, 100 * (foretold / measured - 1), m.base / 1e6, m.parameters / 1e6, m.gradients / 1e6,
        m.optimizer / 1e6, m.activations / 1e6, m.buffers / 1e6);
    EXPECT_GT(foretold / measured, 0.9);
    EXPECT_LT(foretold / measured, 1.1);
  }
}

// Of optimizer state in files the buffers of its sub-groups alone are in memory.
TEST(PlanMemory, StateInFilesTakesItsBuffersAlone) {
  if (!FLYWHEEL_COUNTS_BYTES) GTEST_SKIP() << "a sanitizer has an allocator of its own";
  const TempFolder folder;
  const model::DecoderConfig decoder = decoder_config(512, 4, 4096, true);
  for (const int64_t stage : {0, 2}) {
    TrainConfig config;
    config.mesh = {.data = 2, .zero = stage};
    config.batch = {.sequences = 2, .length = 64};
    const auto foretold = [&] {
      Planner planner(job_of(config, decoder), house());
      return planner.predict(mesh_of(config)).memory;
    };
    const Measured memory = measured_bytes(config, decoder);
    const MemoryByKind in_memory = foretold();
    config.offload = {.optimizer = OffloadDevice::kNvme, .path = folder.path(), .sub_group_values = 200'000};
    const Measured files = measured_bytes(config, decoder);
    const MemoryByKind in_files = foretold();
    // With the state go the masters of a share.
    const double saved =
        in_memory.optimizer + in_memory.parameters - in_files.optimizer - in_files.parameters;
    std::printf("stage %ld: %.1f MB in memory, %.1f with state in files; %.1f saved, foretold %.1f\n", stage,
                memory.kept / 1e6, files.kept / 1e6, (memory.kept - files.kept) / 1e6, saved / 1e6);
    EXPECT_GT(saved, in_memory.optimizer / 2);
    EXPECT_EQ(in_files.parameters == 0, stage > 0);
    EXPECT_NEAR((memory.kept - files.kept) / saved, 1, 0.05);
    EXPECT_LT(files.peak, memory.peak);
  }
}

// Parameters in files: between steps nothing of a share is in memory but the sub-groups' buffers; at the
// peak, two layers' parts more.
TEST(PlanMemory, ParametersInFilesLeaveTheirShareFree) {
  if (!FLYWHEEL_COUNTS_BYTES) GTEST_SKIP() << "a sanitizer has an allocator of its own";
  const TempFolder folder;
  const model::DecoderConfig decoder = decoder_config(512, 8, 4096, true);
  for (const int64_t data : {1, 2}) {
    for (const Precision precision : drawn(std::vector{Precision::kF32, Precision::kBF16}, 1)) {
      TrainConfig config;
      config.precision = precision;
      config.mesh = {.data = data, .zero = data > 1 ? 3 : 0};
      config.batch = {.sequences = 2, .length = 64};
      const auto foretold = [&] {
        Planner planner(job_of(config, decoder), house());
        return planner.predict(mesh_of(config)).memory;
      };
      const Measured memory = measured_bytes(config, decoder);
      const MemoryByKind in_memory = foretold();
      config.mesh.zero = 3;
      config.offload = {
          .parameters = OffloadDevice::kNvme, .path = folder.path(), .sub_group_values = 100'000};
      const Measured files = measured_bytes(config, decoder);
      const MemoryByKind in_files = foretold();
      EXPECT_EQ(in_files.parameters, 0);
      const double under_way = 3 * 100'000 * 4;
      EXPECT_NEAR(in_files.optimizer - in_memory.optimizer, under_way, 1);
      std::printf(
          "%ld workers, %s: %.1f MB at the peak in memory, %.1f with parameters in files, foretold %.1f\n",
          data, config_name(precision), memory.peak / 1e6, files.peak / 1e6, in_files.total() / 1e6);
      // A worker alone also gives up what products read of all layers.
      const double share = in_memory.parameters, gone = memory.kept - files.kept;
      const double expected = share - under_way;
      if (data > 1) {
        EXPECT_NEAR(gone / expected, 1, 0.05);
      } else {
        EXPECT_GT(gone, expected);
      }
      EXPECT_LT(files.peak, memory.peak - share / 2);
    }
  }
}

// Bytes a parameter that a worker keeps. Ours, on CPUs: f32 gradients (4), and K = 12 of f32 weights and
// AdamW's moments: 4 + K, 4 + K / N, (4 + K) / N; and about 4 more of what products read of the weights,
// packed twice in bf16, at stage 3 of nothing between steps. The field's, on GPUs, where products read the
// bf16 weights as they lie and gradients have 2 bytes: 4 + K, 4 + K / N, 2 + (2 + K) / N, (4 + K) / N
// (Rajbhandari et al. 2020).
TEST(PlanMemory, ZeroKeepsTheBytesOfItsFormula) {
  if (!FLYWHEEL_COUNTS_BYTES) GTEST_SKIP() << "a sanitizer has an allocator of its own";
  const model::DecoderConfig decoder = decoder_config(512, 4, 1024, false);
  const model::Decoder described = model::describe(decoder);
  const auto parameters = static_cast<double>(described.num_parameters());
  const double embedding = 1024 * 512, read = 4 * (parameters - embedding) + 2 * embedding;
  for (const int64_t n : drawn(std::vector<int64_t>{2, 4}, 1)) {
    for (int64_t stage = 0; stage <= 3; ++stage) {
      TrainConfig config;
      config.mesh = {.data = n, .zero = stage};
      config.batch = {.sequences = n, .length = 16};
      const double kept = measured_bytes(config, decoder).kept;
      const double k = 12, ranks = static_cast<double>(n);
      const double ours[] = {4 + k, 4 + k / ranks, (4 + k) / ranks, (4 + k) / ranks};
      const double field[] = {4 + k, 4 + k / ranks, 2 + (2 + k) / ranks, (4 + k) / ranks};
      const double expected = ours[stage] * parameters + (stage < 3 ? read : 0);
      std::printf(
          "%ld workers, stage %ld: %.2f bytes a parameter, by our formula %.2f (%+.1f%%), by the field's "
          "%.2f\n",
          n, stage, kept / parameters, expected / parameters, 100 * (kept / expected - 1), field[stage]);
      EXPECT_NEAR(kept / expected, 1, 0.05);
    }
  }
}

}  // namespace
}  // namespace flywheel::train
