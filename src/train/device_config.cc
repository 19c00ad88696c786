#include "train/device_config.h"

#include "train/device_layers.h"

namespace flywheel::train {
namespace {

constexpr int64_t kVector = 8;          // bf16 values that a kernel reads at once
constexpr int64_t kMostHeadDim = 128;   // of the attention kernels
constexpr int64_t kMostWidth = 16'384;  // of a row that a norm's block of threads keeps in registers

template <typename... Args>
Error refusal(const char* key, fmt::format_string<Args...> why, Args&&... args) {
  return make_error(ErrorCode::kInvalid, "{}: {}", key, fmt::format(why, std::forward<Args>(args)...));
}

Result<void> check_method(const TrainConfig& c) {
  if (c.precision != Precision::kBF16)
    return refusal("precision",
                   "{} is not there on a gpu, which multiplies in bf16; use bf16, or device: cpu",
                   config_name(c.precision));
  const OptimizerConfig& o = c.optimizer;
  if (o.type != OptimizerType::kAdamW && o.type != OptimizerType::kAdam)
    return refusal("optimizer.type", "{} is not there on a gpu; use adamw or adam, or device: cpu",
                   config_name(o.type));
  if (o.masters != Masters::kF32)
    return refusal("optimizer.masters", "none is not there on a gpu; use f32, or device: cpu");
  if (o.ema_decay > 0)
    return refusal("optimizer.ema_decay", "is not there on a gpu; set it to 0, or device: cpu");
  if (c.adapter.on())
    return refusal("adapter", "is not there on a gpu; train all weights, or set device: cpu");
  if (c.digests.every_steps > 0)
    return refusal("digests.every_steps", "is not there on a gpu; set it to 0, or device: cpu");
  if (c.recompute == Recompute::kAuto)
    return refusal("recompute",
                   "auto foretells the memory of CPU workers; on a gpu say none, selective or full");
  if (c.recompute != Recompute::kFull && !Recompute::kSelective.contains(c.recompute))
    return refusal("recompute",
                   "{} is not there on a gpu, which forgets norm, swiglu or a whole layer; say "
                   "selective or full",
                   config_name(c.recompute));
  return {};
}

Result<void> check_mesh_of_gpus(const TrainConfig& c) {
  const std::pair<const char*, int64_t> axes[] = {{"mesh.expert", c.mesh.expert},
                                                  {"mesh.context", c.mesh.context},
                                                  {"mesh.tensor", c.mesh.tensor},
                                                  {"mesh.pipeline", c.mesh.pipeline}};
  for (const auto& [key, ranks] : axes) {
    if (ranks > 1)
      return refusal(key,
                     "{} is not there on gpus, of which each has the whole model; use mesh.data, or "
                     "device: cpu",
                     ranks);
  }
  if (c.mesh.zero > 0)
    return refusal("mesh.zero",
                   "{} is not there on gpus, of which each has the whole state; set it to 0, or "
                   "device: cpu",
                   c.mesh.zero);
  if (c.offload.optimizer != OffloadDevice::kNone)
    return refusal("offload.optimizer",
                   "{} is not there on a gpu, which has the state in its own memory; set it "
                   "to none, or device: cpu",
                   config_name(c.offload.optimizer));
  if (c.offload.parameters != OffloadDevice::kNone)
    return refusal("offload.parameters", "{} is not there on a gpu; set it to none, or device: cpu",
                   config_name(c.offload.parameters));
  return {};
}

Result<void> check_widths(const model::DecoderConfig& d) {
  if (d.head_dim > kMostHeadDim || d.head_dim % (2 * kVector) != 0)
    return refusal("model.num_heads",
                   "heads of {} are not there on a gpu, whose heads are of a multiple of {}, at "
                   "most {}",
                   d.head_dim, 2 * kVector, kMostHeadDim);
  const std::pair<const char*, int64_t> widths[] = {{"model.hidden_size", d.hidden_size},
                                                    {"model.intermediate_size", d.intermediate_size},
                                                    {"model.vocab_size", d.vocab_size}};
  for (const auto& [key, width] : widths) {
    if (width % kVector == 0) continue;
    return refusal(key, "{} is no multiple of {}, which a gpu reads at once{}", width, kVector,
                   width == d.vocab_size ? fmt::format("; set it to {}, of which the last are never used",
                                                       (width + 63) / 64 * 64)
                                         : "");
  }
  if (d.hidden_size <= kMostWidth) return {};
  return refusal("model.hidden_size", "{} is more than the {} of a gpu's norms", d.hidden_size, kMostWidth);
}

}  // namespace

Result<void> check_device(const TrainConfig& config, const model::Decoder& decoder) {
  if (config.device != DeviceChoice::kGpu) return {};
  RETURN_IF_ERROR(check_method(config));
  RETURN_IF_ERROR(check_mesh_of_gpus(config));
  if (decoder.config.moe.any())
    return refusal("model.family",
                   "{} has experts, which are not there on a gpu; use a dense family, or "
                   "device: cpu",
                   decoder.config.family);
  RETURN_IF_ERROR(check_widths(decoder.config));
  if (const auto layers = device_layers(decoder); !layers.ok()) return layers.error();
  return {};
}

DeviceChoice choose_device(const TrainConfig& config, const model::Decoder& decoder, int gpus) {
  if (config.device != DeviceChoice::kAuto) return config.device;
  TrainConfig on_gpu = config;
  on_gpu.device = DeviceChoice::kGpu;
  const bool enough = config.mesh.hosts.empty() && gpus >= config.mesh.workers();
  return enough && check_device(on_gpu, decoder).ok() ? DeviceChoice::kGpu : DeviceChoice::kCpu;
}

}  // namespace flywheel::train
