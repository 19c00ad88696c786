#include "train/layout.h"

#include <map>

#include "base/check.h"
#include "train/optimizer_state.h"
#include "train/rounding.h"

namespace flywheel::train {
namespace {

// Layers in equal parts; where they do not divide, stages in the middle have one more, as the first and the
// last also have the vocabulary's matrices.
std::vector<LayerRange> even_stages(int64_t layers, int64_t stages) {
  const int64_t extra = layers % stages, first_extra = (stages - extra + 1) / 2;
  std::vector<LayerRange> ranges;
  int64_t begin = 0;
  for (int64_t stage = 0; stage < stages; ++stage) {
    const bool more = stage >= first_extra && stage < first_extra + extra;
    const int64_t end = begin + layers / stages + (more ? 1 : 0);
    ranges.emplace_back(begin, end);
    begin = end;
  }
  return ranges;
}

// What ZeRO asks of the optimizer and of the batch.
Result<void> check_sharing(const TrainConfig& config) {
  const MeshConfig& mesh = config.mesh;
  if (mesh.stage() == 0) return {};
  const OptimizerType type = config.optimizer.type;
  if (type == OptimizerType::kAdafactor || type == OptimizerType::kMuon) {
    return make_error(
        ErrorCode::kInvalid,
        "mesh.zero: {} needs whole matrices, and shares of ZeRO end inside them; use mesh.zero 0 "
        "(and mesh.tensor to cut the state), or optimizer.type adamw, adamw_8bit, lion or sgd",
        type == OptimizerType::kMuon ? "muon" : "adafactor");
  }
  const BatchConfig& batch = config.batch;
  if (mesh.stage() >= 2 && !equal_microbatches(batch.sequences, mesh.data, batch.micro_sequences)) {
    return make_error(
        ErrorCode::kInvalid,
        "mesh.zero: stage {} exchanges at every microbatch, and {} sequences over {} data ranks in "
        "microbatches of {} are not the same number on each; change batch.sequences or "
        "batch.micro_sequences, or use mesh.zero 1",
        mesh.zero, batch.sequences, mesh.data, batch.micro_sequences);
  }
  return {};
}

}  // namespace

runtime::Shape mesh_shape(const MeshConfig& mesh) {
  std::vector<runtime::Axis> axes;
  if (mesh.pipeline > 1) axes.push_back({"pipeline", static_cast<int>(mesh.pipeline)});
  const bool groups = mesh.stage() > 0 && mesh.sharing() < mesh.data;
  if (groups) axes.push_back({"copy", static_cast<int>(mesh.data / mesh.sharing())});
  axes.push_back({"data", static_cast<int>(groups ? mesh.sharing() : mesh.data)});
  if (mesh.tensor > 1) axes.push_back({"tensor", static_cast<int>(mesh.tensor)});
  return runtime::Shape(std::move(axes));
}

bool equal_microbatches(int64_t sequences, int64_t data, int64_t micro) {
  if (micro == 0) return true;
  const int64_t least = sequences / data, most = (sequences + data - 1) / data;
  return (least + micro - 1) / micro == (most + micro - 1) / micro;
}

std::string batch_axes(const runtime::Shape& shape) {
  return shape.axis_size("copy").ok() ? "copy,data" : "data";
}

MeshPlace Layout::place(int rank) const {
  const auto at = [&](const char* axis) -> int64_t {
    const auto coordinate = shape.coordinate(rank, axis);
    return coordinate.ok() ? *coordinate : 0;  // an axis that is not there has one rank
  };
  return {.pipeline = at("pipeline"),
          .data = at("copy") * shape.axis_size("data").value() + at("data"),
          .tensor = at("tensor")};
}

LocalDecoder Layout::local(const MeshPlace& place) const {
  const auto tensor = shape.axis_size("tensor");
  std::vector<LayerRange> chunks;
  for (int chunk = 0; chunk < schedule.chunks; ++chunk) {
    const int stage = schedule.stage_of(static_cast<int>(place.pipeline), chunk);
    chunks.push_back(stages.at(static_cast<size_t>(stage)));
  }
  return cut(decoder,
             {.tensor_size = tensor.ok() ? *tensor : 1,
              .tensor_rank = place.tensor,
              .sequence_parallel = sequence_parallel},
             chunks)
      .value();  // make_layout() has tried it
}

ShareOptions Layout::share_of(const MeshPlace& place) const {
  ShareOptions own = share;
  own.rank = place.data % own.ranks;
  return own;
}

std::vector<int> Layout::holders() const {
  if (share.stage == 0) return shape.slice({{"data", 0}}).value();
  std::map<std::string, int> first;
  if (shape.axis_size("copy").ok()) first["copy"] = 0;
  return shape.slice(first).value();
}

std::vector<int> Layout::alike(int rank) const {
  if (share.stage == 0) return shape.group(rank, "data").value();
  if (!shape.axis_size("copy").ok()) return {rank};
  return shape.group(rank, "copy").value();
}

Result<Layout> make_layout(const TrainConfig& config, const model::Decoder& decoder) {
  const MeshConfig& mesh = config.mesh;
  const int64_t share = config.batch.sequences / mesh.data;
  const int64_t micro =
      config.batch.micro_sequences > 0 ? std::min(config.batch.micro_sequences, share) : share;
  if (mesh.pipeline > 1 && (config.batch.sequences % mesh.data != 0 || share % micro != 0)) {
    return make_error(ErrorCode::kInvalid,
                      "batch.micro_sequences: a pipeline needs equal microbatches; {} sequences over {} data "
                      "ranks in microbatches of {} are not",
                      config.batch.sequences, mesh.data, micro);
  }
  if (mesh.sequence_parallel && config.batch.length % mesh.tensor != 0) {
    return make_error(ErrorCode::kInvalid,
                      "mesh.sequence_parallel: batch.length {} does not divide by {} tensor ranks",
                      config.batch.length, mesh.tensor);
  }
  RETURN_IF_ERROR(check_sharing(config));
  Layout layout{.decoder = decoder, .shape = mesh_shape(mesh), .sequence_parallel = mesh.sequence_parallel};
  layout.share = {.stage = mesh.stage(), .ranks = mesh.sharing(), .bucket_values = mesh.bucket_values};
  // Parts end between blocks of state; a rank alone has none, and its buffers are those of a checkpoint.
  if (config.optimizer.type == OptimizerType::kAdamW8Bit && layout.share.ranks > 1)
    layout.share.alignment = kStateBlock;
  const PipelineSize size{.workers = static_cast<int>(mesh.pipeline),
                          .microbatches = (share + micro - 1) / micro};
  RETURN_IF_ERROR(can_schedule(mesh.schedule, size));
  layout.schedule = with_communication(make_schedule(mesh.schedule, size));
  const int64_t stages = layout.schedule.stages();
  if (decoder.config.num_layers < stages) {
    return make_error(ErrorCode::kInvalid, "mesh.pipeline: {} layers do not make {} stages",
                      decoder.config.num_layers, stages);
  }
  layout.stages = even_stages(decoder.config.num_layers, stages);
  for (int64_t rank = 0; rank < mesh.tensor; ++rank) {
    ASSIGN_OR_RETURN(const LocalDecoder local, cut(decoder, {.tensor_size = mesh.tensor, .tensor_rank = rank},
                                                   {{0, decoder.config.num_layers}}));
    RETURN_IF_ERROR(check_parts(config.optimizer, flat_weights(local)));
    RETURN_IF_ERROR(check_rounding(rounding_of(config), local));
  }
  return layout;
}

}  // namespace flywheel::train
