// The thread of a worker that makes snapshots while commands go on: bytes, a copy for another rank, a file.
//
// Threads: submit() from any. What was submitted and not begun when it is destroyed is dropped.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "runtime/executor.h"
#include "runtime/snapshots.h"
#include "runtime/transport.h"
#include "runtime/worker.h"

namespace flywheel::runtime {

class SnapshotThread {
 public:
  SnapshotThread(const WorkerConfig& config, Transport& transport, Snapshots& snapshots)
      : config_(config), transport_(transport), snapshots_(snapshots), thread_([this] { loop(); }) {}
  ~SnapshotThread();
  void submit(WatermarkMessage order, Frozen frozen, int64_t freeze_us);

 private:
  struct Job {
    WatermarkMessage order;
    Frozen frozen;
    int64_t freeze_us = 0;
  };
  void loop();
  KeptMessage keep(const Job& job);
  Result<void> write_down(const WatermarkMessage& order, const std::string& own, const Rope& replicated,
                          const Rope& per_rank) const;

  const WorkerConfig& config_;
  Transport& transport_;
  Snapshots& snapshots_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> jobs_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace flywheel::runtime
