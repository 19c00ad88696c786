#include "reshard.h"

#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/config_places.h"
#include "base/env.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/progress.h"
#include "checkpoint_ref.h"
#include "model/dcp_weights.h"
#include "model/deepspeed_weights.h"
#include "model/training_source.h"
#include "model/weights.h"
#include "table.h"
#include "train/foreign_state.h"
#include "train/reshard.h"
#include "train/whole_state.h"

namespace flywheel::cli {
namespace {

using store::Artifact;
using store::Store;

// The config that the checkpoint was made with: what --config names, what lies beside its shards, or its
// run's. From there on --set.
train::TrainConfig config_of(const ReshardOptions& options, const CheckpointRef& source,
                             ConfigPlaces& places) {
  if (!options.config.empty()) return places.load<train::TrainConfig>(options.config, options.overrides);
  const std::string beside = train::shard_config_path(source.path);
  if (path_exists(beside)) return places.load<train::TrainConfig>(beside, options.overrides);
  if (!source.artifact.empty()) {
    Store store = Store::open().value_or_throw();
    const Artifact artifact = store.resolve(source.artifact).value_or_throw();
    const auto run = store.run_info(artifact.run);
    if (!artifact.run.empty() && run.ok())
      return places.parse<train::TrainConfig>("the config of " + artifact.run, run->config,
                                              options.overrides);
  }
  throw UserError("--config", options.source + " does not say which config it was trained with",
                  "give the training config of its run");
}

// State of our own is written anew as it is, so that of its config the mesh alone can be another. What others
// wrote is described by --config, and --set with it.
void check_overrides(const ReshardOptions& options, const CheckpointRef& source) {
  if (train::is_foreign_checkpoint(source.path)) return;
  for (const std::string& assignment : options.overrides) {
    const std::string key = assignment.substr(0, assignment.find('='));
    if (key == "mesh" || key.starts_with("mesh.")) continue;
    throw UserError("--set " + assignment,
                    key +
                        ": cannot be changed here: weights and optimizer state stay those of the model and "
                        "method that they were made with, and only mesh: says how they are cut",
                    "leave it away");
  }
}

// The file of a checkpoint's folder that stands for it.
std::string mark_of(const std::string& folder) {
  const auto format = model::training_format(folder);
  if (!format) return folder + "/checkpoint.json";
  if (*format == model::WeightFormat::kDcp) return folder + "/" + model::kDcpMetadataName;
  return model::deepspeed_model_file(folder).value_or_throw(folder);
}

// The name in the store of what the new one is made from; a folder becomes a source.
std::string source_ref(Store& store, const CheckpointRef& source) {
  if (!source.artifact.empty()) return source.artifact;
  namespace fs = std::filesystem;
  const std::string folder = fs::absolute(source.path).lexically_normal().string();
  const std::string mark = mark_of(folder);
  const std::string name = fs::path(folder).filename().string() + "-folder";
  return store.put_source(name, folder, sha256_file(mark).value_or_throw(), file_size(mark).value_or_throw())
      .value_or_throw()
      .ref();
}

void check_output(const ReshardOptions& options, const CheckpointRef& source) {
  namespace fs = std::filesystem;
  if (options.out.empty() == options.name.empty())
    throw UserError("flywheel ckpt reshard", "give either --out FOLDER or --name NAME",
                    "a name makes it an artifact of the store");
  if (!options.name.empty()) store::check_name(options.name).value_or_throw("--name");
  const model::WeightFormat format = model::weight_format(source.path).value_or_throw(options.source);
  if (format != model::WeightFormat::kCheckpoint && !train::is_foreign_checkpoint(source.path))
    throw UserError(
        options.source,
        std::string("is a model (") + model::weight_format_name(format) + ") without the state of a training",
        "flywheel ckpt list shows checkpoints");
  std::error_code error;
  if (!options.out.empty() && fs::exists(options.out, error))
    throw UserError("--out", options.out + " is there already", "give a new folder");
}

}  // namespace

int reshard(const ReshardOptions& options, bool json) {
  const CheckpointRef source = find_checkpoint(options.source);
  check_output(options, source);
  ConfigPlaces places;
  train::TrainConfig config = config_of(options, source, places);
  check_overrides(options, source);
  // These are a run's, and of its own mesh: where state lies, who is compared, how few workers will do.
  config.offload = {}, config.digests = {}, config.elastic = {};
  places.blame([&] { train::check(config); });
  const std::string from = source.artifact.empty() ? source.path : source.artifact;
  // Beside the store, whose file system has the room: it is moved into it.
  std::string to = options.out;
  if (to.empty()) to = fmt::format("{}/reshard-{}", env::home(), getpid());

  ProgressBar bar("reshard", 0, "bytes");
  const auto progress = [&](uint64_t done, uint64_t all) {
    bar.set_total(static_cast<int64_t>(all));
    bar.update(static_cast<int64_t>(done));
  };
  const auto made = train::reshard_checkpoint(source.path, to, config, from, progress);
  if (!made.ok()) throw UserError(options.source, made.error());
  bar.finish(human_bytes(static_cast<double>(made->state_bytes)));
  std::string artifact;
  if (!options.name.empty()) {
    Store store = Store::open().value_or_throw();
    auto put = store.put_artifact(
        {.kind = "checkpoint",
         .name = options.name,
         .path = to,
         .inputs = {source_ref(store, source)},
         .metadata = {{"step", made->step}, {"loss", made->loss}, {"sha256", made->sha256}},
         .ingest = store::Ingest::kMove});
    (void)remove_all(to);
    artifact = std::move(put).value_or_throw("--name").ref();
  }
  if (json) {
    print_json({{"path", artifact.empty() ? Json(to) : Json()},
                {"artifact", artifact},
                {"from", from},
                {"step", made->step},
                {"sha256", made->sha256},
                {"shards", made->shards},
                {"state_bytes", made->state_bytes}});
    return 0;
  }
  const std::string form = fmt::format("{} shard{}", made->shards, made->shards == 1 ? "" : "s");
  std::printf("%s  step %ld, %s, %s of state, from %s\nsha256  %s\n",
              (artifact.empty() ? to : artifact).c_str(), static_cast<long>(made->step), form.c_str(),
              human_bytes(static_cast<double>(made->state_bytes)).c_str(), from.c_str(),
              made->sha256.c_str());
  return 0;
}

}  // namespace flywheel::cli
