#include "train/can_train.h"

#include <algorithm>

#include "train/device_config.h"
#include "train/layout.h"
#include "train/segments.h"

namespace flywheel::train {
namespace {

// What a check throws, as a value.
template <typename Check>
Result<void> caught(const Check& check) {
  try {
    check();
  } catch (const UserError& error) {
    return Error{ErrorCode::kInvalid, error.what()};
  }
  return {};
}

Result<void> check_length(const TrainConfig& config, const model::Decoder& decoder) {
  if (config.batch.length <= decoder.config.max_positions) return {};
  return make_error(ErrorCode::kInvalid, "batch.length: {} is more than the model's {} positions",
                    config.batch.length, decoder.config.max_positions);
}

Result<void> check_router(const RouterConfig& router, const model::DecoderConfig& decoder) {
  if (!decoder.moe.any()) {
    const RouterConfig usual;
    const auto differs = [&](double value, double usually, const char* key) -> Result<void> {
      if (value == usually) return {};
      return make_error(ErrorCode::kInvalid, "router.{}: the family {} has no experts", key, decoder.family);
    };
    RETURN_IF_ERROR(differs(router.balance_loss, usual.balance_loss, "balance_loss"));
    RETURN_IF_ERROR(differs(router.z_loss, usual.z_loss, "z_loss"));
    RETURN_IF_ERROR(differs(router.bias_rate, usual.bias_rate, "bias_rate"));
    return differs(router.capacity_factor, usual.capacity_factor, "capacity_factor");
  }
  int64_t layers = 0;
  for (int64_t layer = 0; layer < decoder.num_layers; ++layer) layers += decoder.moe.in_layer(layer) ? 1 : 0;
  if (layers == 0)
    return make_error(ErrorCode::kInvalid,
                      "model.experts: of {} layers none has experts; lower model.experts.dense_layers or "
                      "model.experts.every, or choose a family without",
                      decoder.num_layers);
  if (router.bias_rate == 0 || decoder.moe.choice_bias) return {};
  return make_error(ErrorCode::kInvalid,
                    "router.bias_rate: the family {} has no bias of the choice of experts; use "
                    "router.balance_loss, or model.family dots1",
                    decoder.family);
}

// A list names what the model has; `selective` is what there is of it.
Result<void> check_recompute(Recompute recompute, const model::Decoder& decoder) {
  if (!recompute.any_operation() || recompute == Recompute::kSelective) return {};
  const LocalDecoder local = whole(decoder);
  const auto operations = operations_of(local, 0, local.steps.size());
  for (const auto& known : ConfigSet<Recompute>::parts) {
    const auto is_it = [&](const auto& operation) { return operation && known.second.has(*operation); };
    if (!recompute.contains(known.second) || std::ranges::any_of(operations, is_it)) continue;
    return make_error(ErrorCode::kInvalid, "recompute: no layer of this model has {}; leave it out",
                      known.first);
  }
  return {};
}

}  // namespace

Result<void> can_train(const TrainConfig& config, const model::Decoder& decoder) {
  RETURN_IF_ERROR(caught([&] { check(config); }));
  RETURN_IF_ERROR(MeshRules(config, decoder).check(config));
  return check_device(config, decoder);
}

MeshRules::MeshRules(const TrainConfig& config, const model::Decoder& decoder) : decoder_(decoder) {
  TrainConfig any_mesh = config;
  any_mesh.mesh = {};
  any_mesh.digests = {}, any_mesh.elastic = {};  // are of the mesh's replicas
  any_mesh.batch.micro_sequences = 0;
  if (config.offload.parameters == OffloadDevice::kNvme) any_mesh.mesh.zero = 3;  // no other stage has them
  of_job_ = caught([&] {
    check_numbers(config);  // the mesh's too, while they are those that somebody wrote down
    train::check(any_mesh);
  });
  if (of_job_.ok()) of_job_ = check_length(config, decoder);
  if (of_job_.ok()) of_job_ = check_router(config.router, decoder.config);
  if (of_job_.ok()) of_job_ = check_recompute(config.recompute, decoder);
}

Result<void> MeshRules::check(const TrainConfig& config) {
  RETURN_IF_ERROR(of_job_);
  RETURN_IF_ERROR(caught([&] { check_axes(config); }));
  RETURN_IF_ERROR(check_other_axes(config, decoder_.config));
  const auto known = of_tensor_axis_.find(config.mesh.tensor);
  if (known != of_tensor_axis_.end()) return known->second;
  return of_tensor_axis_[config.mesh.tensor] = check_tensor_axis(config, decoder_);
}

}  // namespace flywheel::train
