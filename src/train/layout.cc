#include "train/layout.h"

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

}  // namespace

runtime::Shape mesh_shape(const MeshConfig& mesh) {
  std::vector<runtime::Axis> axes;
  if (mesh.pipeline > 1) axes.push_back({"pipeline", static_cast<int>(mesh.pipeline)});
  axes.push_back({"data", static_cast<int>(mesh.data)});
  if (mesh.tensor > 1) axes.push_back({"tensor", static_cast<int>(mesh.tensor)});
  return runtime::Shape(std::move(axes));
}

MeshPlace Layout::place(int rank) const {
  const auto at = [&](const char* axis) -> int64_t {
    const auto coordinate = shape.coordinate(rank, axis);
    return coordinate.ok() ? *coordinate : 0;  // an axis that is not there has one rank
  };
  return {.pipeline = at("pipeline"), .data = at("data"), .tensor = at("tensor")};
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

std::vector<int> Layout::holders() const {
  return shape.slice({{"data", 0}}).value();
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
  Layout layout{.decoder = decoder, .shape = mesh_shape(mesh), .sequence_parallel = mesh.sequence_parallel};
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
