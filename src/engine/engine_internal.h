// The engine's thread and its mailbox. Private to engine.cc and engine_open.cc.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "base/philox.h"
#include "engine/engine_loop.h"

namespace flywheel::engine {

struct Engine::Impl {
  Impl(const EngineConfig& config, model::OpenModel opened, std::unique_ptr<Executor> executor,
       const LoopOptions& options, uint64_t seed, ThreadPool& pool);
  ~Impl();

  Result<RequestId> submit(GenerationRequest request, EventCallback callback);
  void cancel(RequestId id);
  void stop();
  std::string why_unhealthy() const;
  EngineStats stats() const;

  void run();        // the thread
  bool read_mail();  // false: stop
  void stop_with(const std::string& error);

  const EngineConfig config;
  const model::OpenModel model;
  const int64_t max_context_tokens, vocab_size;
  EngineMetrics metrics;

  mutable std::mutex mutex;  // guards what follows, up to the thread
  std::condition_variable mail;
  std::vector<std::shared_ptr<ActiveRequest>> submitted;
  std::vector<RequestId> cancelled;
  bool stopping = false;
  std::string failure;  // why the thread ended
  RequestId next_id = 1;
  int64_t queued_sequences = 0;  // submitted, not yet in the loop
  EngineStats latest_stats;
  Philox seeds;

  std::atomic<int64_t> heartbeat_ms;  // when the thread last began or ended a step, or woke up idle
  EngineLoop loop;                    // the thread's alone
  std::mutex joining;                 // of `thread`
  std::thread thread;
};

}  // namespace flywheel::engine
