#include "engine/request.h"

#include <cmath>

namespace flywheel::engine {
namespace {

constexpr size_t kMaxStopBytes = 4096;

template <typename T>
Result<void> in_range(const char* field, T value, T low, T high) {
  if (value >= low && value <= high) return {};  // false for NaN
  return make_error(ErrorCode::kInvalid, "{}: {} is out of range; it must be {} to {}", field, value, low,
                    high);
}

Result<void> is_token(const char* field, TokenId id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return {};
  return make_error(ErrorCode::kInvalid, "{}: token {} is not in the vocabulary of {}", field, id,
                    vocab_size);
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

Result<void> validate(const GenerationRequest& request, int64_t vocab_size) {
  const SamplingParams& s = request.sampling;
  if (request.prompt.empty())
    return make_error(ErrorCode::kInvalid, "prompt: is empty; it needs at least one token");
  for (const TokenId id : request.prompt) RETURN_IF_ERROR(is_token("prompt", id, vocab_size));
  RETURN_IF_ERROR(in_range("temperature", s.temperature, 0.0f, 100.0f));
  RETURN_IF_ERROR(in_range("top_p", s.top_p, 0.0f, 1.0f));
  RETURN_IF_ERROR(in_range("top_k", s.top_k, 0, 1 << 24));
  RETURN_IF_ERROR(in_range("min_p", s.min_p, 0.0f, 1.0f));
  RETURN_IF_ERROR(in_range("repetition_penalty", s.repetition_penalty, 1e-3f, 1e3f));
  RETURN_IF_ERROR(in_range("presence_penalty", s.presence_penalty, -100.0f, 100.0f));
  RETURN_IF_ERROR(in_range("frequency_penalty", s.frequency_penalty, -100.0f, 100.0f));
  for (const auto& [id, bias] : s.logit_bias) {
    RETURN_IF_ERROR(is_token("logit_bias", id, vocab_size));
    RETURN_IF_ERROR(in_range("logit_bias", bias, -1000.0f, 1000.0f));
  }
  if (request.max_tokens) RETURN_IF_ERROR(in_range<int64_t>("max_tokens", *request.max_tokens, 0, 1 << 30));
  RETURN_IF_ERROR(
      in_range<int64_t>("min_tokens", request.min_tokens, 0, request.max_tokens.value_or(1 << 30)));
  RETURN_IF_ERROR(in_range("n", request.n, 1, 128));
  if (request.logprobs) RETURN_IF_ERROR(in_range("logprobs", *request.logprobs, 0, 100));
  if (request.prompt_logprobs && !request.logprobs)
    return make_error(ErrorCode::kInvalid,
                      "prompt_logprobs: needs logprobs, which says how many likeliest ones");
  RETURN_IF_ERROR(in_range<size_t>("stop", request.stop.size(), 0, 64));
  for (const std::string& stop : request.stop) {
    if (!stop.empty() && stop.size() <= kMaxStopBytes) continue;
    return make_error(ErrorCode::kInvalid, "stop: a string of {} bytes; it must have 1 to {}", stop.size(),
                      kMaxStopBytes);
  }
  for (const TokenId id : request.stop_tokens) RETURN_IF_ERROR(is_token("stop_tokens", id, vocab_size));
  return {};
}

}  // namespace flywheel::engine
