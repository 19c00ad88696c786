// The thread of a worker that makes snapshots while commands go on: bytes, a copy for another rank, a file.
//
// Threads: submit() from any. What was submitted and not begun when it is destroyed is dropped.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "runtime/executor.h"
#include "runtime/snapshots.h"
#include "runtime/transport.h"
#include "runtime/worker.h"

namespace flywheel::runtime {

class SnapshotThread {
 public:
  // `send`: to the controller, false when that is gone; from this thread.
  SnapshotThread(const WorkerConfig& config, Transport& transport, Snapshots& snapshots,
                 std::function<bool(const std::string&)> send)
      : config_(config),
        transport_(transport),
        snapshots_(snapshots),
        send_(std::move(send)),
        thread_([this] { loop(); }) {}
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
  std::function<bool(const std::string&)> send_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> jobs_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace flywheel::runtime
