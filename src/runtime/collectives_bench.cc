// all_reduce between 2 processes on one host: ours (shared memory) beside Gloo's own over TCP, in one run,
// and beside what the memory allows. `bench/allreduce` runs it.
//
// Gloo is measured with each of its algorithms that sum f32 over TCP (ring, chunked ring, halving-doubling,
// and the two of gloo::allreduce), adding with our vector loop; the best stands for it.
#include <gloo/allreduce.h>
#include <gloo/allreduce_halving_doubling.h>
#include <gloo/allreduce_ring.h>
#include <gloo/allreduce_ring_chunked.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "runtime/collectives.h"
#include "runtime/collectives_reduce.h"

namespace flywheel::runtime {
namespace {

constexpr int kRanks = 2;
constexpr int kMaxResults = 32;

struct Board {  // what the two processes share
  std::atomic<int> arrived;
  std::atomic<int> endpoint_bytes[kRanks];
  char endpoints[kRanks][4096];
  double seconds[kMaxResults];
};

void meet(Board& board, int& round) {
  board.arrived.fetch_add(1);
  ++round;
  while (board.arrived.load() < kRanks * round) {
  }
}

// Median seconds of one call, after a warm-up; rank 0's clock.
double median_seconds(const std::function<void()>& call, int times) {
  for (int i = 0; i < std::max(3, times / 10); ++i) call();
  std::vector<double> all;
  for (int i = 0; i < times; ++i) {
    const Stopwatch watch;
    call();
    all.push_back(watch.seconds());
  }
  std::nth_element(all.begin(), all.begin() + times / 2, all.end());
  return all[static_cast<size_t>(times / 2)];
}

// The least that any all_reduce in place must do: every rank reads its buffer and writes it.
void read_and_write(std::vector<float>& x) {
  const void* in = x.data();
  reduce_in_rank_order(isa())(Element::kF32, Reduce::kSum, x.data(), nullptr, &in, 1, std::ssize(x));
}

// For Gloo: its own loop is compiled for the baseline, which would not be fair.
void add(void* out, const void* a, const void* b, size_t n) {
  const void* in[] = {a, b};
  reduce_in_rank_order(isa())(Element::kF32, Reduce::kSum, out, nullptr, in, 2, static_cast<int64_t>(n));
}
const gloo::ReductionFunction<float> kAdd(gloo::SUM,
                                          [](float* x, const float* y, size_t n) { add(x, x, y, n); });

struct Size {
  const char* name;
  int64_t bytes;
  int times;
};
constexpr Size kSizes[] = {{"64 KB", 64 << 10, 2000}, {"32 MB", 32 << 20, 30}};
constexpr const char* kGlooNames[] = {"ring", "ring chunked", "halving-doubling", "allreduce ring",
                                      "allreduce bcube"};
constexpr int kPerSize = 2 + std::size(kGlooNames);  // ours, the memory, Gloo's

void run_rank(int rank, Board& board, const std::string& folder) {
  int round = 0;
  auto comm = Communicator::open({.name = "bench",
                                  .epoch = 1,
                                  .rank = rank,
                                  .hosts = {"127.0.0.1", "127.0.0.1"},
                                  .key = "of the bench"})
                  .value_or_throw();
  std::memcpy(board.endpoints[rank], comm->endpoint().data(), comm->endpoint().size());
  board.endpoint_bytes[rank] = static_cast<int>(comm->endpoint().size());
  meet(board, round);
  std::vector<std::string> endpoints;
  for (int r = 0; r < kRanks; ++r) {
    endpoints.emplace_back(board.endpoints[r], static_cast<size_t>(board.endpoint_bytes[r].load()));
  }
  const auto minute = [] { return Deadline::after_ms(60'000); };
  comm->connect(endpoints, minute()).value_or_throw();

  gloo::transport::tcp::attr loopback("127.0.0.1");
  auto device = gloo::transport::tcp::CreateDevice(loopback);
  gloo::rendezvous::FileStore store(folder);
  auto context = std::make_shared<gloo::rendezvous::Context>(rank, kRanks);
  context->connectFullMesh(store, device);

  int next = 0;
  for (const Size& size : kSizes) {
    std::vector<float> x(static_cast<size_t>(size.bytes / 4), 0.0f);
    const auto count = static_cast<int>(x.size());
    const auto record = [&](const std::function<void()>& call) {
      meet(board, round);
      const double seconds = median_seconds(call, size.times);
      if (rank == 0) board.seconds[next] = seconds;
      ++next;
    };
    record([&] { comm->run(AllReduce{of(std::span(x)), of(std::span(x))}, minute()).value_or_throw(); });
    record([&] { read_and_write(x); });
    const std::vector<float*> pointers{x.data()};
    gloo::AllreduceRing<float> ring(context, pointers, count, &kAdd);
    gloo::AllreduceRingChunked<float> chunked(context, pointers, count, &kAdd);
    gloo::AllreduceHalvingDoubling<float> halving(context, pointers, count, &kAdd);
    record([&] { ring.run(); });
    record([&] { chunked.run(); });
    record([&] { halving.run(); });
    for (const auto algorithm :
         {gloo::AllreduceOptions::Algorithm::RING, gloo::AllreduceOptions::Algorithm::BCUBE}) {
      gloo::AllreduceOptions options(context);
      options.setAlgorithm(algorithm);
      options.setOutput(x.data(), x.size());
      options.setReduceFunction(add);
      record([&] { gloo::allreduce(options); });
    }
  }
  meet(board, round);
}

int run() {
  void* memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED, "mmap");
  auto& board = *static_cast<Board*>(memory);
  std::string folder = std::filesystem::temp_directory_path() / "flywheel-bench-XXXXXX";
  CHECK(mkdtemp(folder.data()) != nullptr, "mkdtemp");
  for (int rank = 0; rank < kRanks; ++rank) {
    if (fork() == 0) {
      run_rank(rank, board, folder);
      _exit(0);
    }
  }
  bool good = true;
  for (int rank = 0; rank < kRanks; ++rank) {
    int status = 0;
    wait(&status);
    good = good && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  std::filesystem::remove_all(folder);
  if (!good) return 1;

  OrderedJson report;
  std::printf("%-8s %-28s %12s %10s %8s\n", "size", "what", "time", "GB/s", "ratio");
  for (size_t s = 0; s < std::size(kSizes); ++s) {
    const double* seconds = board.seconds + s * kPerSize;
    const double ours = seconds[0], limit = seconds[1];
    const double peer = *std::min_element(seconds + 2, seconds + kPerSize);
    const auto row = [&](const std::string& what, double time) {
      std::printf("%-8s %-28s %9.1f us %10.2f %8.2f\n", kSizes[s].name, what.c_str(), time * 1e6,
                  static_cast<double>(kSizes[s].bytes) / time / 1e9, time / ours);
    };
    row("ours, shared memory", ours);
    row("limit: read and write once", limit);
    for (size_t i = 0; i < std::size(kGlooNames); ++i)
      row(std::string("gloo tcp ") + kGlooNames[i], seconds[2 + i]);
    report["sizes"].push_back({{"bytes", kSizes[s].bytes},
                               {"ours_us", ours * 1e6},
                               {"peer_us", peer * 1e6},
                               {"ratio", peer / ours},
                               {"limit_fraction", limit / ours}});
    if (s + 1 == std::size(kSizes)) {
      report["unit"] = "us for 32 MB", report["limit"] = "memory: read and write each buffer once";
      report["ours"] = ours * 1e6, report["peer"] = peer * 1e6;
      report["ratio"] = peer / ours;
      report["limit_fraction"] = limit / ours;
    }
  }
  std::printf("%s\n", report.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace flywheel::runtime

int main() {
  return flywheel::runtime::run();
}
