// The engine: one model, its KV cache, and a thread that turns requests into tokens, many at a time.
//
//   request --submit--> waiting --scheduler--> running --executor, sampler--> events --callback--> caller
//
// Reading order: request.h (what goes in and out), scheduler.h (who is served in a step), block_pool.h (whose
// memory), executor.h (the model), sampler.h (the next token), engine.cc (the loop that joins them).
//
// Ownership: the engine owns weights, cache and thread. The callback is kept until the request's last event
// and then destroyed.
// Threads: every function may be called from any thread. Callbacks run on the engine's thread: they must not
// block (hand the event over and return) and may call submit() and cancel().
// Errors: submit() gives kFull when the queue is full (try later), kInvalid for a request that can never be
// served (its message begins with the field: "top_p: ..."), kUnavailable when the engine is dead or stopping.
// A request that was accepted always ends with an event whose `last` is true.
//
//   ASSIGN_OR_RETURN(auto engine, Engine::open({.model = "smollm2"}));
//   auto id = engine->submit({.prompt = engine->tokenizer().encode("Once"), .max_tokens = 20},
//                            [](const GenerationEvent& event) { queue.push(event); });
//   if (!id.ok()) ...
//   engine->cancel(id.value());      // at any moment; the last event then says kCancelled
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "engine/request.h"
#include "model/open_model.h"

namespace flywheel::engine {

struct EngineConfig {
  std::string model;               // an artifact's name, a folder or a .gguf file: see model/open_model.h
  std::string served_name;         // in metrics; empty: the model's own
  std::string dtype = "auto";      // f32, bf16, f16, or auto: as in the file
  std::string kv_dtype = "auto";   // f32, bf16, f16; auto: f32 and bf16 for such weights, else f16
  int64_t kv_cache_bytes = 0;      // 0: a quarter of the free memory, at most 4 GiB and 64 full contexts
  int64_t max_context_tokens = 0;  // 0: the model's own limit, or what the cache holds if that is less
  int64_t max_running = 256;       // sequences in one step
  int64_t max_waiting = 1024;      // beyond these submit() says kFull
  int64_t step_tokens = 512;       // at most this many tokens are computed in one step
  bool prefix_cache = true;        // keep blocks of finished requests for others with the same beginning
  int64_t stall_ms = 60'000;       // a step that takes longer than this makes the engine unhealthy
  std::optional<uint64_t> seed;    // for requests without one; absent: from the system's entropy

  template <typename V>
  void fields(V& v) {
    v("model", model);
    v("served_name", served_name);
    v("dtype", dtype);
    v("kv_dtype", kv_dtype);
    v("kv_cache_bytes", kv_cache_bytes);
    v("max_context_tokens", max_context_tokens);
    v("max_running", max_running);
    v("max_waiting", max_waiting);
    v("step_tokens", step_tokens);
    v("prefix_cache", prefix_cache);
    v("stall_ms", stall_ms);
    v("seed", seed);
  }
};

// kInvalid for numbers out of range; the message begins with the key: "max_running: ...". open() does it too.
Result<void> check(const EngineConfig& config);

struct EngineStats {
  int64_t running = 0, waiting = 0;     // sequences
  int64_t blocks = 0, free_blocks = 0;  // free: also those that only the prefix cache keeps
  int64_t max_context_tokens = 0;
  uint64_t steps = 0, prompt_tokens = 0, generated_tokens = 0, preemptions = 0;
  uint64_t prefix_queried_tokens = 0, prefix_hit_tokens = 0;
};

using EventCallback = std::function<void(const GenerationEvent&)>;

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> open(const EngineConfig& config);
  // A model that is open already (tests, and programs that made one).
  static Result<std::unique_ptr<Engine>> open(const EngineConfig& config, model::OpenModel model);
  ~Engine();  // stop()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  Result<RequestId> submit(GenerationRequest request, EventCallback callback);
  // Unknown or finished ids are ignored.
  void cancel(RequestId id);
  // Cancels what is left and waits for the step in progress; nothing is accepted any more. Again: does
  // nothing. Not from a callback.
  void stop();

  // Whether tokens can be expected: the thread lives, and no step has been stuck for stall_ms.
  bool healthy() const;
  // Why not, "" when healthy.
  std::string why_unhealthy() const;
  EngineStats stats() const;

  const model::OpenModel& model() const;
  const model::Tokenizer& tokenizer() const;
  int64_t max_context_tokens() const;
  int64_t max_waiting() const;  // more sequences than this never fit into the queue

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace flywheel::engine
