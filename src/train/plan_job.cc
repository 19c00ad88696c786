#include "train/plan_job.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "base/check.h"
#include "base/file.h"
#include "base/progress.h"
#include "data/shards.h"
#include "model/weights.h"
#include "store/store.h"
#include "train/inputs.h"
#include "train/layout.h"
#include "train/optimizer_state.h"

namespace flywheel::train {
namespace {

// A local folder or file, or an artifact's.
std::string find_path(const std::string& key, const std::string& name) {
  if (path_exists(name)) return name;
  if (is_path(name)) throw UserError(key, "no such file or folder: " + name);
  auto store = store::Store::open().value_or_throw(key);
  const auto artifact = store.resolve(name);
  if (!artifact.ok()) throw UserError(key, artifact.error());
  return store.path_of(*artifact).value_or_throw(key);
}

int64_t dataset_vocab_size(const TrainConfig& config) {
  if (config.model.vocab_size > 0) return config.model.vocab_size;
  if (config.data.train.empty())
    throw UserError("model.vocab_size", "is not set, and there is no dataset to take it from");
  const std::string folder = find_path("data.train", config.data.train);
  const std::string below = folder + "/shards/train";
  const auto shards = data::TokenShards::open(path_exists(below + "/manifest.json") ? below : folder);
  if (!shards.ok()) {
    throw UserError("data.train", shards.error().message,
                    "or set model.vocab_size to plan without the dataset");
  }
  return shards->manifest().vocab_size;
}

ComputeType compute_of(Precision precision) {
  switch (precision) {
    case Precision::kF32:
      return ComputeType::kF32;
    case Precision::kBF16:
      return ComputeType::kBF16;
    case Precision::kFP16:
      return ComputeType::kF16;
    case Precision::kFP8:
      return ComputeType::kFP8;
  }
  CHECK(false, "no precision {}", static_cast<int>(precision));
}

MachineSpec this_host(double bytes) {
  return {.name = "this machine",
          .kind = DeviceKind::kCpu,
          .f32_tflops = 1,
          .bf16_tflops = 1,
          .memory_gb = bytes / 1e9,
          .reserved_gb = 0,
          .memory_gb_s = 1,
          .host_gb_s = 1,
          .network_gb_s = 1};
}

}  // namespace

model::DecoderConfig decoder_to_plan(const TrainConfig& config, const std::string& model) {
  const std::string name = model.empty() ? config.model.from : model;
  if (name.empty()) return decoder_config(config.model, dataset_vocab_size(config));
  const std::string key = model.empty() ? "model.from" : "--model";
  std::string path = find_path(key, name);
  if (std::filesystem::is_directory(path)) path += "/config.json";
  if (!path.ends_with(".json")) {  // a GGUF file brings its own
    const auto source = model::open_weights(path).value_or_throw(key);
    return model::decoder_config_from_hf(source->config().value_or_throw(key)).value_or_throw(path);
  }
  const Json json = parse_json(read_file(path).value_or_throw(key)).value_or_throw(path);
  return model::decoder_config_from_hf(json).value_or_throw(path);
}

Job job_of(const TrainConfig& config, const model::DecoderConfig& decoder, const Experts& experts) {
  if (config.batch.length > decoder.max_positions) {
    throw UserError("batch.length", fmt::format("{} is more than the model's {} positions",
                                                config.batch.length, decoder.max_positions));
  }
  const model::Decoder described = model::describe(decoder);
  const auto state_bytes =
      static_cast<double>(state_layout(config.optimizer, flat_weights(described)).bytes());
  return {.model = model_cost(described, config.batch.length, experts),
          .sequences = config.batch.sequences,
          .compute = compute_of(config.precision),
          .optimizer = config.optimizer.type,
          .optimizer_bytes = state_bytes / static_cast<double>(described.num_parameters())};
}

PlanMesh mesh_of(const TrainConfig& config) {
  PlanMesh mesh{.data = config.mesh.data, .pipeline = config.mesh.pipeline, .tensor = config.mesh.tensor};
  mesh.schedule = config.mesh.schedule;
  mesh.chunks = mesh.pipeline > 1 ? least_chunks(mesh.schedule) : 1;
  mesh.zero = config.mesh.stage(), mesh.zero_group = config.mesh.zero_group;
  mesh.micro_sequences = config.batch.micro_sequences;
  mesh.recompute = config.recompute ? Recompute::kFull : Recompute::kNone;
  return mesh;
}

std::optional<std::string> memory_refusal(const TrainConfig& config, const model::DecoderConfig& decoder,
                                          double available_bytes) {
  Planner planner(job_of(config, decoder), this_host(std::max(available_bytes, 1.0)));
  // All workers together; of a pipeline at least those of its fullest stage, the others being unlike it.
  const auto needs = [&](const PlanMesh& mesh) {
    if (!planner.can_run(mesh).ok()) return std::numeric_limits<double>::infinity();
    return static_cast<double>(mesh.data * mesh.tensor) * planner.predict(mesh).memory.total();
  };
  const PlanMesh mesh = mesh_of(config);
  if (!planner.can_run(mesh).ok()) return std::nullopt;  // check() says it better
  if (needs(mesh) <= available_bytes) return std::nullopt;
  const MemoryByKind m = planner.predict(mesh).memory;
  std::string text = fmt::format(
      "{} worker{} need {} of memory each (parameters {}, gradients {}, optimizer {}, activations {}, "
      "buffers {}), {} "
      "at least in all; {} are free on this machine",
      mesh.world(), mesh.world() == 1 ? "" : "s", human_bytes(m.total()), human_bytes(m.parameters),
      human_bytes(m.gradients), human_bytes(m.optimizer), human_bytes(m.activations), human_bytes(m.buffers),
      human_bytes(needs(mesh)), human_bytes(available_bytes));

  // One change after another, the cheapest first; each is said with all before it that it needs.
  std::string changes;
  PlanMesh other = mesh;
  const auto try_out = [&](const std::string& what, auto change) {
    const double before = needs(other);
    PlanMesh changed = other;
    change(changed);
    if (changed == other || needs(changed) >= before) return false;
    other = changed;
    changes += (changes.empty() ? "" : ", ") + what;
    return needs(other) <= available_bytes;
  };
  bool fits = false;
  const int64_t share = (config.batch.sequences + mesh.data - 1) / mesh.data;
  for (int64_t micro = (mesh.micro_sequences > 0 ? mesh.micro_sequences : share) / 2; micro >= 1 && !fits;
       micro /= 2) {
    PlanMesh changed = other;
    changed.micro_sequences = micro;
    if (needs(changed) > available_bytes && micro > 1) continue;
    fits = try_out(fmt::format("batch.micro_sequences={}", micro),
                   [&](PlanMesh& p) { p.micro_sequences = micro; });
  }
  const OptimizerType optimizer = config.optimizer.type;
  const bool shares = optimizer != OptimizerType::kMuon && optimizer != OptimizerType::kAdafactor;
  const auto can_exchange = [&](const PlanMesh& p) {
    return equal_microbatches(config.batch.sequences, p.data, p.micro_sequences);
  };
  const int most = !shares ? 0 : can_exchange(other) ? 3 : 1;
  for (int stage = mesh.zero + 1; stage <= most && !fits; ++stage) {
    PlanMesh changed = other;
    changed.zero = stage;
    if (needs(changed) > available_bytes && stage < most) continue;
    fits = try_out(fmt::format("mesh.zero={}", stage), [&](PlanMesh& p) { p.zero = stage; });
  }
  if (!fits) fits = try_out("recompute=true", [](PlanMesh& p) { p.recompute = Recompute::kFull; });
  for (int64_t data = mesh.data - 1; data >= 1 && !fits; --data) {
    PlanMesh changed = other;
    changed.data = data;
    if (data > 1 && other.zero_group > 0 && data % other.zero_group != 0) continue;
    if (data > 1 && other.zero >= 2 && !can_exchange(changed)) continue;
    if (needs(changed) > available_bytes && data > 1) continue;
    const bool alone = data == 1 && other.zero_group > 0;
    fits = try_out(fmt::format("mesh.data={}{}", data, alone ? ", mesh.zero_group=0" : ""), [&](PlanMesh& p) {
      p.data = data;
      if (alone) p.zero_group = 0;
    });
  }
  text +=
      fits ? fmt::format("; it would fit with {} ({})", changes, human_bytes(needs(other)))
           : fmt::format(
                 "; the least that this model needs is {}, on one worker with micro-batches of one sequence "
                 "and recomputation",
                 human_bytes(needs(other)));
  return text;
}

}  // namespace flywheel::train
