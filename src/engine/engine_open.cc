// Engine::open: what fits into memory, and the parts put together.
#include <algorithm>
#include <random>

#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "engine/engine_internal.h"
#include "model/decoder_weights.h"

namespace flywheel::engine {
namespace {

using kernels::DType;

Result<std::optional<DType>> float_dtype(const char* key, const std::string& name) {
  if (name == "auto") return std::optional<DType>();
  const std::optional<DType> dtype = kernels::dtype_from_name(name);
  if (dtype && !kernels::is_quantized(*dtype)) return dtype;
  return make_error(ErrorCode::kInvalid, "{}: \"{}\" is not one of auto, f32, bf16, f16", key, name);
}

// How many blocks, and how long a request may get.
Result<ExecutorLimits> size_cache(const EngineConfig& config, const model::DecoderConfig& decoder,
                                  DType kv_dtype) {
  const kernels::KvLayout layout{kv_dtype, decoder.num_kv_heads, decoder.head_dim};
  const int64_t block_bytes = layout.block_bytes() * decoder.num_layers,
                available = static_cast<int64_t>(available_memory_bytes());
  const int64_t wanted_context =
      config.max_context_tokens > 0 ? config.max_context_tokens : decoder.max_positions;
  if (wanted_context > decoder.max_positions) {
    return make_error(ErrorCode::kInvalid, "max_context_tokens: {} is more than the model's {}",
                      wanted_context, decoder.max_positions);
  }
  int64_t bytes = config.kv_cache_bytes;
  if (bytes == 0) {
    bytes = std::min({available / 4, int64_t{4} << 30, 64 * blocks_for(wanted_context) * block_bytes});
  } else if (bytes > available) {
    return make_error(ErrorCode::kInvalid, "kv_cache_bytes: {} are asked for and {} are free",
                      human_bytes(static_cast<double>(bytes)), human_bytes(static_cast<double>(available)));
  }
  ExecutorLimits limits;
  limits.kv_dtype = kv_dtype;
  limits.num_blocks = std::min<int64_t>(bytes / block_bytes, INT32_MAX);
  limits.max_positions = std::min(wanted_context, limits.num_blocks * kBlockTokens);
  if (limits.num_blocks < 1 || (config.max_context_tokens > 0 && limits.max_positions < wanted_context)) {
    return make_error(ErrorCode::kInvalid,
                      "a request of {} tokens needs {} of KV cache and {} are given ({} are free); lower "
                      "max_context_tokens or raise kv_cache_bytes",
                      wanted_context,
                      human_bytes(static_cast<double>(blocks_for(wanted_context) * block_bytes)),
                      human_bytes(static_cast<double>(bytes)), human_bytes(static_cast<double>(available)));
  }
  limits.max_tokens = std::max(config.step_tokens, std::min(config.max_running, config.step_tokens));
  limits.max_logit_rows = std::min(config.max_running, config.step_tokens);
  return limits;
}

Result<void> check_memory_for_weights(const model::OpenModel& model, const std::optional<DType>& dtype) {
  double bytes = 0;
  for (const model::WeightInfo& weight : model.decoder.weights) {
    const model::TensorInfo* info = model.source->find(weight.name);
    if (info == nullptr) continue;  // loading names it
    const int64_t row =
        dtype ? kernels::row_bytes(*dtype, info->cols()) : kernels::row_bytes(info->dtype, info->cols());
    bytes += static_cast<double>(info->rows() * row);
  }
  const double available = available_memory_bytes();
  if (bytes < available) return {};
  return make_error(ErrorCode::kFull,
                    "{} needs {} for weights and {} are free; a quantized file of it is smaller", model.name,
                    human_bytes(bytes), human_bytes(available));
}

uint64_t entropy() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

}  // namespace

Result<void> check(const EngineConfig& config) {
  const auto in_range = [](const char* key, int64_t value, int64_t least, int64_t most) -> Result<void> {
    if (value < least)
      return make_error(ErrorCode::kInvalid, "{}: {} is too small; at least {}", key, value, least);
    if (value > most)
      return make_error(ErrorCode::kInvalid, "{}: {} is too large; at most {}", key, value, most);
    return {};
  };
  constexpr int64_t kMostSequences = 1 << 20, kMostTokens = 1 << 20;  // each has buffers of its own
  RETURN_IF_ERROR(in_range("max_running", config.max_running, 1, kMostSequences));
  RETURN_IF_ERROR(in_range("max_waiting", config.max_waiting, 1, INT32_MAX));
  RETURN_IF_ERROR(in_range("step_tokens", config.step_tokens, 1, kMostTokens));
  RETURN_IF_ERROR(in_range("stall_ms", config.stall_ms, 1, INT32_MAX));
  RETURN_IF_ERROR(in_range("kv_cache_bytes", config.kv_cache_bytes, 0, INT64_MAX));
  RETURN_IF_ERROR(in_range("max_context_tokens", config.max_context_tokens, 0, INT32_MAX));
  RETURN_IF_ERROR(float_dtype("dtype", config.dtype));
  RETURN_IF_ERROR(float_dtype("kv_dtype", config.kv_dtype));
  return {};
}

Result<std::unique_ptr<Engine>> Engine::open(const EngineConfig& config) {
  RETURN_IF_ERROR(check(config));
  ASSIGN_OR_RETURN(model::OpenModel model, model::open_model(config.model));
  return open(config, std::move(model));
}

Result<std::unique_ptr<Engine>> Engine::open(const EngineConfig& config, model::OpenModel model) {
  RETURN_IF_ERROR(check(config));
  ASSIGN_OR_RETURN(const std::optional<DType> dtype, float_dtype("dtype", config.dtype));
  ASSIGN_OR_RETURN(std::optional<DType> kv_dtype, float_dtype("kv_dtype", config.kv_dtype));
  RETURN_IF_ERROR(check_memory_for_weights(model, dtype));
  ThreadPool& pool = compute_pool();
  const Stopwatch clock;
  ASSIGN_OR_RETURN(model::DecoderWeights weights,
                   model::load_decoder_weights(model.decoder, model.source, {.dtype = dtype}, pool));
  if (!kv_dtype) {
    kv_dtype = weights.dtype == DType::kF32 || weights.dtype == DType::kBF16 ? weights.dtype : DType::kF16;
  }
  ASSIGN_OR_RETURN(const ExecutorLimits limits, size_cache(config, model.decoder.config, *kv_dtype));
  LOG_INFO("{}: {} parameters in {}, {} tokens of KV cache in {}, context {}, ready in {}", model.name,
           human_count(model.decoder.num_parameters()), kernels::dtype_name(weights.dtype),
           human_count(limits.num_blocks * kBlockTokens), kernels::dtype_name(*kv_dtype),
           human_count(limits.max_positions), human_seconds(clock.seconds()));
  auto executor = std::make_unique<Executor>(model.decoder, std::move(weights), limits, pool);
  const uint64_t seed = config.seed.value_or(entropy());
  const LoopOptions options{.limits = {.step_tokens = config.step_tokens,
                                       .max_running = std::min(config.max_running, config.step_tokens),
                                       .step_rows = std::min(config.max_running, config.step_tokens)},
                            .prefix_cache = config.prefix_cache,
                            .hash_key = entropy()};
  return std::unique_ptr<Engine>(
      new Engine(std::make_unique<Impl>(config, std::move(model), std::move(executor), options, seed, pool)));
}

}  // namespace flywheel::engine
