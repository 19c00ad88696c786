// Threads that compute. Work is cut into pieces by size, never by the number of threads, so that no result
// depends on how many there are.
//
// Threads: parallel_for may be called from one thread at a time per pool (others wait their turn); a call
// from inside a piece runs inline.
//
//   ThreadPool pool(2);
//   pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end) { ... });   // pieces of 16 rows
//   double sum = pool.parallel_sum(n, 4096, [&](int64_t b, int64_t e) { ... return partial; });
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace flywheel {

class ThreadPool {
 public:
  // `threads` includes the caller's: 1 runs everything inline. 0: one per core that this process may use.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // body(begin, end) over [0, n) in pieces of `grain`; returns when all are done. The first exception that
  // a piece throws is rethrown here. Template: no allocation per call.
  template <typename Body>
  void parallel_for(int64_t n, int64_t grain, Body&& body) {
    using Fn = std::remove_reference_t<Body>;
    run(
        n, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<Fn*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Sum of body's partials in piece order.
  template <typename Body>
  double parallel_sum(int64_t n, int64_t grain, Body&& body) {
    std::vector<double> partial(static_cast<size_t>(n > 0 ? (n + grain - 1) / grain : 0));
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      partial[static_cast<size_t>(begin / grain)] = body(begin, end);
    });
    double sum = 0;
    for (const double p : partial) sum += p;
    return sum;
  }

 private:
  using Piece = void (*)(void* context, int64_t begin, int64_t end);
  void run(int64_t n, int64_t grain, Piece piece, void* context);
  struct State;
  std::unique_ptr<State> state_;
};

// The process's compute pool. Made on first use; set_compute_threads() before that chooses its size.
ThreadPool& compute_pool();
void set_compute_threads(int threads);

}  // namespace flywheel
