// What the engine counts, under the names that serving systems share (vLLM's), labelled with the model.
#pragma once

#include <string>

#include "base/metrics.h"
#include "engine/request.h"

namespace flywheel::engine {

struct EngineMetrics {
  explicit EngineMetrics(const std::string& model);

  Gauge& running;                  // num_requests_running
  Gauge& waiting;                  // num_requests_waiting
  Gauge& kv_usage;                 // kv_cache_usage_perc, 0 to 1
  Counter& preemptions;            // num_preemptions_total
  Counter& prompt_tokens;          // prompt_tokens_total
  Counter& generation_tokens;      // generation_tokens_total
  Counter& prefix_queries;         // prefix_cache_queries_total, in tokens
  Counter& prefix_hits;            // prefix_cache_hits_total, in tokens
  Histogram& first_token_seconds;  // time_to_first_token_seconds
  Histogram& inter_token_seconds;  // inter_token_latency_seconds
  Histogram& e2e_seconds;          // e2e_request_latency_seconds
  Histogram& queue_seconds;        // request_queue_time_seconds
  Histogram& step_seconds;         // flywheel_engine_step_seconds
  Histogram& step_tokens;          // iteration_tokens_total

  // request_success_total by finished_reason
  Counter& finished(FinishReason reason) const;

 private:
  std::string model_;
};

}  // namespace flywheel::engine
