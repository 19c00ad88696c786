#include "train/plan_job.h"

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "base/progress.h"
#include "data/shards.h"
#include "model/weights.h"
#include "store/store.h"
#include "train/begin_from.h"
#include "train/inputs.h"
#include "train/layout.h"
#include "train/offloaded_state.h"
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

// Of the base as it lies in its file, bytes a parameter where it is quantized.
Job::Blocks blocks_of(const TrainConfig& config, const model::Decoder& decoder) {
  if (!config.adapter.on() || config.adapter.base != AdapterBase::kAsIs) return {};
  const std::string path = find_path("model.from", config.model.from);
  const auto format = model::weight_format(path);
  if (!format.ok() || *format != model::WeightFormat::kGguf) return {};  // the others are not quantized
  const auto source = model::open_weights(path).value_or_throw("model.from");
  struct Sum {
    double bytes = 0, parameters = 0;
    bool quantized = false;
    double each() const { return quantized ? bytes / parameters : 0; }
  } layers, tables;
  for (const model::Step& step : decoder.steps) {
    const bool table = step.op == model::Op::kEmbed || step.op == model::Op::kLogits;
    if (!table && step.op != model::Op::kLinear) continue;
    const model::TensorInfo* info = source->find(decoder.weights[static_cast<size_t>(step.weight)].name);
    if (info == nullptr) continue;  // the adapter's own
    Sum& sum = table ? tables : layers;
    sum.bytes += static_cast<double>(info->rows() * kernels::row_bytes(info->dtype, info->cols()));
    sum.parameters += static_cast<double>(info->elements());
    sum.quantized |= kernels::is_quantized(info->dtype);
  }
  return {.layers = layers.each(), .tables = tables.each()};
}

// Of its memory the part of one of so many workers that run here.
MachineSpec this_host(const TrainConfig& config, double bytes, int64_t workers) {
  MachineSpec host{.name = "this machine",
                   .kind = DeviceKind::kCpu,
                   .f32_tflops = 0.1,  // of a core, about: they only say what is cheaper
                   .bf16_tflops = 0.3,
                   .memory_gb = bytes / 1e9,
                   .reserved_gb = 0,
                   .memory_gb_s = 10,
                   .host_gb_s = 3,
                   .network_gb_s = 1};
  if (config.adapter.on()) host.devices_per_host = workers;  // they map one file
  return host;
}

}  // namespace

model::DecoderConfig decoder_to_plan(const TrainConfig& config, const std::string& model) {
  const std::string& checkpoint = config.checkpoint.from;
  const std::string name = !model.empty() ? model : checkpoint.empty() ? config.model.from : checkpoint;
  if (name.empty()) return decoder_config(config.model, dataset_vocab_size(config));
  const std::string key = !model.empty() ? "--model" : checkpoint.empty() ? "model.from" : "checkpoint.from";
  std::string path = find_path(key, name);
  if (key == "checkpoint.from") refuse_foreign_checkpoint(path);
  const auto checked = [&](const model::DecoderConfig& decoder) {
    if (model.empty()) check_model_keys(config.model, decoder, key + " " + name);
    return decoder;
  };
  if (std::filesystem::is_directory(path + "/model")) path += "/model";  // of a checkpoint
  if (path_exists(path + "/config.json")) path += "/config.json";
  if (!path.ends_with(".json")) {  // a GGUF brings its own
    const auto source = model::open_weights(path).value_or_throw(key);
    return checked(model::decoder_config_from_hf(source->config().value_or_throw(key)).value_or_throw(path));
  }
  const Json json = parse_json(read_file(path).value_or_throw(key)).value_or_throw(path);
  return checked(model::decoder_config_from_hf(json).value_or_throw(path));
}

Job job_of(const TrainConfig& config, const model::DecoderConfig& decoder, const Experts& experts) {
  if (config.batch.length < 1)
    throw UserError("batch.length", "must be at least 1");  // nothing has a cost then
  const model::Decoder described = decoder_of(config, with_experts(decoder, experts));
  const auto state_bytes =
      static_cast<double>(state_layout(config.optimizer, flat_weights(described)).bytes());
  return {.config = config,
          .decoder = described,
          .model = model_cost(described, config.batch.length),
          .optimizer_bytes = state_bytes / static_cast<double>(described.num_trained()),
          .blocks = blocks_of(config, described)};
}

PlanMesh mesh_of(const TrainConfig& config) {
  const MeshConfig& m = config.mesh;
  PlanMesh mesh{
      .data = m.data, .expert = m.expert, .context = m.context, .pipeline = m.pipeline, .tensor = m.tensor};
  mesh.schedule = m.schedule;
  if (mesh.pipeline > 1) mesh.chunks = static_cast<int>(m.chunks > 0 ? m.chunks : least_chunks(m.schedule));
  mesh.sequence_parallel = m.sequence_parallel;
  mesh.zero = static_cast<int>(m.zero), mesh.zero_group = m.zero_group;
  mesh.micro_sequences = config.batch.micro_sequences;
  mesh.recompute = config.recompute;
  return mesh;
}

void set_mesh(TrainConfig& config, const PlanMesh& mesh) {
  MeshConfig& m = config.mesh;
  m.data = mesh.data, m.expert = mesh.expert, m.context = mesh.context;
  m.pipeline = mesh.pipeline, m.tensor = mesh.tensor;
  m.schedule = mesh.schedule, m.chunks = mesh.pipeline > 1 ? mesh.chunks : 0;
  m.sequence_parallel = mesh.sequence_parallel;
  m.zero = mesh.zero, m.zero_group = mesh.zero_group;
  config.batch.micro_sequences = mesh.micro_sequences;
  config.recompute = mesh.recompute;
}

std::vector<std::string> overrides(const TrainConfig& config, const PlanMesh& mesh) {
  const PlanMesh from = mesh_of(config);
  std::vector<std::string> list;
  const auto say = [&](const char* key, const auto& was, const auto& is) {
    if (was != is) list.push_back(fmt::format("{}={}", key, is));
  };
  say("mesh.data", from.data, mesh.data), say("mesh.expert", from.expert, mesh.expert);
  say("mesh.context", from.context, mesh.context), say("mesh.tensor", from.tensor, mesh.tensor);
  say("mesh.pipeline", from.pipeline, mesh.pipeline);
  if (mesh.pipeline > 1) {
    say("mesh.schedule", std::string(config_name(from.schedule)), std::string(config_name(mesh.schedule)));
    const int usual = least_chunks(mesh.schedule);
    say("mesh.chunks", config.mesh.chunks > 0 ? static_cast<int>(config.mesh.chunks) : usual, mesh.chunks);
  }
  say("mesh.sequence_parallel", from.sequence_parallel, mesh.sequence_parallel);
  say("mesh.zero", from.zero, mesh.zero), say("mesh.zero_group", from.zero_group, mesh.zero_group);
  say("batch.micro_sequences", from.micro_sequences, mesh.micro_sequences);
  say("recompute", std::string(config_name(from.recompute)), std::string(config_name(mesh.recompute)));
  return list;
}

Recompute choose_recompute(const TrainConfig& config, const model::DecoderConfig& decoder,
                           double available_bytes, int64_t machines, std::string* why) {
  if (config.recompute != Recompute::kAuto) return config.recompute;
  const int64_t on_each = (config.mesh.workers() + machines - 1) / machines;
  Planner planner(job_of(config, decoder),
                  this_host(config, std::max(available_bytes / static_cast<double>(on_each), 1.0), on_each));
  PlanMesh mesh = mesh_of(config);
  mesh.recompute = planner.least_recompute(mesh);
  if (why != nullptr) *why = planner.memory_by_recompute(mesh);
  return mesh.recompute;
}

std::optional<std::string> memory_refusal(const TrainConfig& config, const model::DecoderConfig& decoder,
                                          double available_bytes) {
  // All workers share the host's memory; a Planner's fits when each has its part.
  const auto workers = static_cast<double>(config.mesh.workers());
  Planner planner(job_of(config, decoder),
                  this_host(config, std::max(available_bytes / workers, 1.0), config.mesh.workers()));
  const PlanMesh mesh = mesh_of(config);
  if (!planner.can_run(mesh).ok()) return std::nullopt;  // can_train() says it better
  const auto fits = [&](const PlanMesh& other) { return planner.bytes_of_all(other) <= available_bytes; };
  if (fits(mesh)) return std::nullopt;
  const MemoryByKind m = planner.predict(mesh).memory;
  std::string text = human_bytes(m.total()) + " of memory";
  const char* between = " (";
  for (const MemoryKind& kind : kinds_of(m)) {
    text += fmt::format("{}{} {}", between, kind.name, human_bytes(m.*kind.bytes));
    between = ", ";
  }
  text += ")";
  if (mesh.world() == 1) {
    text = "1 worker needs " + text;
  } else {
    text = fmt::format("the fullest of {} workers needs {}, all of them {}", mesh.world(), text,
                       human_bytes(planner.bytes_of_all(mesh)));
  }
  text += fmt::format("; {} are free on this machine", human_bytes(available_bytes));

  std::vector<Advice> ways = planner.what_fits(mesh, fits);
  // Fewer replicas, in whole groups of those that share or one alone, and as little else as helps.
  const int64_t group = std::max<int64_t>(1, mesh.zero_group), fewest = group > 1 ? 0 : 1;
  for (int64_t groups = (mesh.data - 1) / group; groups >= fewest && ways.empty();
       groups = groups > 16 ? groups / 2 : groups - 1) {
    PlanMesh fewer = mesh;
    fewer.data = std::max<int64_t>(1, groups * group);
    if (fewer.data == 1) fewer.zero_group = 0;
    if (!planner.can_run(fewer).ok()) continue;
    ways =
        fits(fewer) ? std::vector<Advice>{{fewer, overrides(config, fewer)}} : planner.what_fits(fewer, fits);
  }
  if (ways.empty()) {
    PlanMesh least{.micro_sequences = 1, .recompute = Recompute::kFull};
    return text + fmt::format(
                      "; the least that this model needs is {}, on one worker with micro-batches of one "
                      "sequence and full recomputation",
                      human_bytes(planner.bytes_of_all(least)));
  }
  const char* separator = "; it would fit with ";
  for (const Advice& way : ways) {
    std::string changes;
    for (const std::string& change : way.overrides) changes += (changes.empty() ? "" : ", ") + change;
    text += fmt::format("{}{} ({})", separator, changes, human_bytes(planner.bytes_of_all(way.mesh)));
    separator = ", or ";
  }
  return text;
}

double offload_disk_bytes(const TrainConfig& config, const model::DecoderConfig& decoder) {
  if (!config.offload.in_files()) return 0;
  const Result<Layout> layout = make_layout(config, model::describe(decoder));
  if (!layout.ok()) return 0;  // can_train() says it better
  double bytes = 0;
  for (const int holder : layout->holders()) {
    const MeshPlace place = layout->place(holder);
    const Shares shares(layout->local(place), layout->share_of(place));
    double each = 0;
    if (config.offload.state_in_files())
      each += static_cast<double>(state_layout(config.optimizer, shares.held()).bytes());
    if (config.weights_in_files()) each += 4 * static_cast<double>(shares.held_count());
    bytes += each * static_cast<double>(layout->alike(holder).size());
  }
  return bytes * static_cast<double>(kOffloadGenerations);
}

std::optional<std::string> disk_refusal(const TrainConfig& config, const model::DecoderConfig& decoder,
                                        double free_bytes) {
  const double bytes = offload_disk_bytes(config, decoder);
  if (bytes <= free_bytes) return std::nullopt;
  return fmt::format(
      "{} in files needs {} in {} ({} generations of each worker's: one is read, one written, "
      "others are held by snapshots), and {} are free there; make room, name another folder, or leave "
      "{} away",
      config.offload.state_in_files() ? "optimizer state" : "f32 weights", human_bytes(bytes),
      config.offload.path, kOffloadGenerations, human_bytes(free_bytes),
      config.offload.state_in_files() ? "offload.optimizer" : "offload.parameters");
}

}  // namespace flywheel::train
