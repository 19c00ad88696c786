#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/philox.h"
#include "kernels/cross_entropy.h"

namespace flywheel::engine {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Grows to the largest vocabulary that the thread has met.
struct Scratch {
  std::vector<TokenId> order;
  std::vector<float> weights, raw;
};
Scratch& scratch(size_t vocab_size) {
  thread_local Scratch mine;
  if (mine.order.size() < vocab_size) {
    mine.order.resize(vocab_size), mine.weights.resize(vocab_size), mine.raw.resize(vocab_size);
  }
  return mine;
}

TokenId largest(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<TokenId>(best);
}

std::vector<TokenLogprob> likeliest(std::span<const float> logits, float log_sum, size_t count) {
  std::vector<TokenId>& order = scratch(logits.size()).order;
  const auto end = order.begin() + static_cast<std::ptrdiff_t>(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) order[i] = static_cast<TokenId>(i);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), end,
                    [&](TokenId a, TokenId b) {
                      const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
                      return x > y || (x == y && a < b);
                    });
  std::vector<TokenLogprob> top(count);
  for (size_t i = 0; i < count; ++i) top[i] = {order[i], logits[static_cast<size_t>(order[i])] - log_sum};
  return top;
}

void apply_penalties(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts) {
  for (const auto& [id, bias] : params.logit_bias) logits[static_cast<size_t>(id)] += bias;
  if (!needs_counts(params)) return;
  for (const auto& [id, count] : counts.map()) {
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (count == 0) continue;
    logit -= params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
  }
}

// Candidates by falling weight, put in order only as far as they are asked for: a draw usually walks over a
// few of many thousands.
class Ranking {
 private:
  auto likelier() const {
    return [this](TokenId a, TokenId b) {
      const float x = weights_[static_cast<size_t>(a)], y = weights_[static_cast<size_t>(b)];
      return x > y || (x == y && a < b);
    };
  }

 public:
  Ranking(std::span<TokenId> candidates, const std::vector<float>& weights)
      : candidates_(candidates), weights_(weights) {}

  // Drops all but the likeliest `count`.
  void keep(size_t count) {
    if (count >= candidates_.size()) return;
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(count),
                     candidates_.end(), likelier());
    candidates_ = candidates_.first(count);
  }
  size_t size() const { return candidates_.size(); }
  TokenId operator[](size_t rank) {
    if (rank >= sorted_) {
      const size_t next = std::min(size(), std::max<size_t>(64, sorted_ * 4));
      std::partial_sort(candidates_.begin() + static_cast<std::ptrdiff_t>(sorted_),
                        candidates_.begin() + static_cast<std::ptrdiff_t>(next), candidates_.end(),
                        likelier());
      sorted_ = next;
    }
    return candidates_[rank];
  }
  double weight(size_t rank) { return static_cast<double>(weights_[static_cast<size_t>((*this)[rank])]); }
  // In no order of likelihood, but always in the same one.
  double total() const {
    double sum = 0;
    for (const TokenId id : candidates_) sum += static_cast<double>(weights_[static_cast<size_t>(id)]);
    return sum;
  }

 private:
  std::span<TokenId> candidates_;
  const std::vector<float>& weights_;
  size_t sorted_ = 0;
};

TokenId draw(std::span<const float> logits, const SamplingParams& params, float uniform) {
  auto& [order, weights, raw] = scratch(logits.size());
  const TokenId best = largest(logits);
  const float top = logits[static_cast<size_t>(best)], inverse = 1.0f / params.temperature;
  // weight = exp((logit - top) / temperature): the share of the likeliest token's probability.
  size_t count = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const float weight = std::exp((logits[i] - top) * inverse);
    weights[i] = weight;
    if (weight > 0 && weight >= params.min_p) order[count++] = static_cast<TokenId>(i);
  }
  if (count == 0) return best;  // logits that are not numbers
  Ranking ranking(std::span<TokenId>(order).first(count), weights);
  if (params.top_k > 0) ranking.keep(static_cast<size_t>(params.top_k));
  const double total = ranking.total();

  size_t kept = ranking.size();
  double kept_weight = total;
  if (params.top_p < 1.0f) {
    kept = 0, kept_weight = 0;
    while (kept < ranking.size() && (kept == 0 || kept_weight < total * static_cast<double>(params.top_p))) {
      kept_weight += ranking.weight(kept++);
    }
  }
  const double target = static_cast<double>(uniform) * kept_weight;
  double walked = 0;
  for (size_t rank = 0; rank + 1 < kept; ++rank) {
    walked += ranking.weight(rank);
    if (walked > target) return ranking[rank];
  }
  return ranking[kept - 1];
}

}  // namespace

bool needs_counts(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

float uniform_for(uint64_t seed, int index, int64_t position) {
  return philox_to_unit(Philox::at(seed, static_cast<uint64_t>(index), static_cast<uint64_t>(position), 0));
}

GeneratedToken sample(std::span<float> logits, const SampleInput& input) {
  GeneratedToken token;
  std::vector<float>& raw = scratch(logits.size()).raw;
  float log_sum = 0;
  if (input.logprobs) {
    log_sum = kernels::log_sum_exp(logits.data(), static_cast<int64_t>(logits.size()));
    token.top = likeliest(logits, log_sum, std::min(static_cast<size_t>(*input.logprobs), logits.size()));
    std::copy(logits.begin(), logits.end(), raw.begin());
  }
  apply_penalties(logits, input.params, input.counts);
  for (const TokenId id : input.banned) logits[static_cast<size_t>(id)] = kNever;
  token.id = input.params.temperature == 0 ? largest(logits) : draw(logits, input.params, input.uniform);
  if (std::isnan(logits[static_cast<size_t>(token.id)])) token.id = kNoToken;
  if (input.logprobs && token.id != kNoToken) token.logprob = raw[static_cast<size_t>(token.id)] - log_sum;
  return token;
}

GeneratedToken score(std::span<const float> logits, TokenId id, int top) {
  const float log_sum = kernels::log_sum_exp(logits.data(), static_cast<int64_t>(logits.size()));
  GeneratedToken token;
  token.id = id;
  token.logprob = logits[static_cast<size_t>(id)] - log_sum;
  token.top = likeliest(logits, log_sum, std::min(static_cast<size_t>(top), logits.size()));
  if (std::isnan(token.logprob)) token.id = kNoToken;
  return token;
}

}  // namespace flywheel::engine
