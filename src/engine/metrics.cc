#include "engine/metrics.h"

namespace flywheel::engine {
namespace {

// vLLM's edges, so that its dashboards fit.
const std::vector<double> kFirstTokenEdges = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,
                                              0.75,  1,     2.5,  5,    7.5,  10,   20,   40,  80};
const std::vector<double> kInterTokenEdges = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,
                                              0.15,  0.2,    0.3,   0.4,  0.5,   0.75, 1,     2.5};
const std::vector<double> kRequestEdges = {0.1, 0.3, 0.5, 0.8, 1,  1.5, 2,   2.5,
                                           5,   10,  15,  20,  30, 60,  120, 240};
const std::vector<double> kTokenEdges = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};

}  // namespace

EngineMetrics::EngineMetrics(const std::string& model)
    : running(Metrics::global().gauge("num_requests_running", "Sequences in the running batch",
                                      {{"model_name", model}})),
      waiting(Metrics::global().gauge("num_requests_waiting", "Sequences waiting to be admitted",
                                      {{"model_name", model}})),
      kv_usage(Metrics::global().gauge("kv_cache_usage_perc", "Share of KV blocks in use, 1 is full",
                                       {{"model_name", model}})),
      preemptions(Metrics::global().counter(
          "num_preemptions_total", "Sequences put back for want of KV blocks", {{"model_name", model}})),
      prompt_tokens(Metrics::global().counter("prompt_tokens_total", "Prompt tokens accepted",
                                              {{"model_name", model}})),
      generation_tokens(
          Metrics::global().counter("generation_tokens_total", "Tokens generated", {{"model_name", model}})),
      prefix_queries(Metrics::global().counter(
          "prefix_cache_queries_total", "Tokens looked up in the prefix cache", {{"model_name", model}})),
      prefix_hits(Metrics::global().counter("prefix_cache_hits_total", "Tokens found in the prefix cache",
                                            {{"model_name", model}})),
      first_token_seconds(Metrics::global().histogram("time_to_first_token_seconds",
                                                      "From submit to the first token", kFirstTokenEdges,
                                                      {{"model_name", model}})),
      inter_token_seconds(Metrics::global().histogram("inter_token_latency_seconds",
                                                      "Between two tokens of a sequence", kInterTokenEdges,
                                                      {{"model_name", model}})),
      e2e_seconds(Metrics::global().histogram("e2e_request_latency_seconds", "From submit to the last token",
                                              kRequestEdges, {{"model_name", model}})),
      queue_seconds(Metrics::global().histogram("request_queue_time_seconds", "From submit to admission",
                                                kRequestEdges, {{"model_name", model}})),
      step_seconds(Metrics::global().histogram("flywheel_engine_step_seconds", "One step of the loop",
                                               kInterTokenEdges, {{"model_name", model}})),
      step_tokens(Metrics::global().histogram("iteration_tokens_total", "Tokens computed in a step",
                                              kTokenEdges, {{"model_name", model}})),
      model_(model) {}

Counter& EngineMetrics::finished(FinishReason reason) const {
  return Metrics::global().counter("request_success_total", "Sequences that ended, by reason",
                                   {{"model_name", model_}, {"finished_reason", finish_reason_name(reason)}});
}

}  // namespace flywheel::engine
