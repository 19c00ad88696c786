#include "train/workers.h"

#include <algorithm>
#include <map>

#include "base/cpu.h"
#include "train/operations.h"

namespace flywheel::train {

using runtime::Controller;

int64_t snapshot_interval_ms(int64_t parameters) {
  const int64_t state_bytes = parameters * 12;  // weights and two moments
  return 1000 + state_bytes / 20'000;
}

Result<Workers> Workers::open(const TrainConfig& config, const Layout& layout,
                              const WorkersOptions& options) {
  runtime::ControllerOptions own{.folder = options.folder, .run = options.run, .seed = config.seed};
  own.watermark_interval_ms =
      options.snapshot_interval_ms >= 0
          ? options.snapshot_interval_ms
          : snapshot_interval_ms(layout.decoder.num_parameters() / std::ssize(layout.holders()));
  own.durable_interval_ms = std::max<int64_t>(30'000, 4 * own.watermark_interval_ms);
  own.launcher =
      runtime::make_local_launcher({.command = options.command, .log_folder = options.folder + "/workers"});
  own.address = options.hosts.address;
  own.port = static_cast<int>(config.mesh.port);
  Workers workers;
  ASSIGN_OR_RETURN(workers.controller_, Controller::open(std::move(own)));
  ASSIGN_OR_RETURN(workers.mesh_,
                   workers.controller_->mesh("train", layout.shape.axes(), {.hosts = options.hosts.list}));
  std::map<std::string, int> first;
  for (const runtime::Axis& axis : layout.shape.axes()) first[axis.name] = 0;
  ASSIGN_OR_RETURN(workers.first_, workers.mesh_.slice(first));
  return workers;
}

runtime::Future Workers::create(const TrainConfig& config, const Inputs& inputs,
                                const std::string& state) const {
  // Other hosts are taken to be like this one.
  const int64_t hosts = config.mesh.num_hosts(), per_host = (config.mesh.workers() + hosts - 1) / hosts;
  const int64_t share = std::max<int64_t>(1, usable_cores() / per_host);
  const TrainSetup setup{.config = dump_config(config),
                         .decoder = model::decoder_config_to_hf(inputs.decoder, "float32").dump(),
                         .data = inputs.data.folder,
                         .validation = inputs.validation.folder,
                         .tokenizer = inputs.tokenizer.folder,
                         .weights = inputs.model.folder,
                         .state = state,
                         .threads = config.mesh.threads > 0 ? config.mesh.threads : share};
  return mesh_.call(kCreate, setup.to_json());
}

}  // namespace flywheel::train
