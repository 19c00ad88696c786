// A counter in shared memory that one process raises and others wait for: spin first, then sleep on a futex.
//
// Threads and processes: any number may wait; one at a time publishes. Values wrap: reached() compares by
// difference, so a waiter may lag at most 2^31 behind.
#pragma once

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

namespace flywheel::runtime {

// Two cache lines: the line and the one that the processor fetches along with it.
struct alignas(128) ShmSignal {
  std::atomic<uint32_t> value;
  std::atomic<uint32_t> sleepers;
  std::atomic<int> core;  // where the publisher ran, when it last published

  // Spinning for a publisher on one's own core only keeps it from running.
  bool worth_spinning() const { return core.load(std::memory_order_relaxed) != sched_getcpu(); }

  bool reached(uint32_t target) const {
    return static_cast<int32_t>(value.load(std::memory_order_acquire) - target) >= 0;
  }
  void publish(uint32_t next) {
    core.store(sched_getcpu(), std::memory_order_relaxed);
    // Sequentially consistent, as the sleeper's side is: either it sees the value or this sees the sleeper.
    value.store(next, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) != 0) wake();
  }
  void wake() { syscall(SYS_futex, &value, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }
  // Sleeps until the value has reached the target, somebody wakes, or `ms` have passed.
  void sleep(uint32_t target, int64_t ms) {
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    const uint32_t seen = value.load(std::memory_order_seq_cst);
    if (static_cast<int32_t>(seen - target) < 0) {
      const timespec limit{ms / 1000, (ms % 1000) * 1'000'000};
      syscall(SYS_futex, &value, FUTEX_WAIT, seen, &limit, nullptr, 0);
    }
    sleepers.fetch_sub(1, std::memory_order_seq_cst);
  }
};
static_assert(std::atomic<uint32_t>::is_always_lock_free, "shared memory needs lock-free atomics");

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  asm volatile("yield" ::: "memory");
#endif
}

}  // namespace flywheel::runtime
