#include "train/plan.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "train/pipeline_simulator.h"
#include "train/plan_internal.h"
#include "train/plan_search_internal.h"
#include "train/stage_balance.h"

namespace flywheel::train {
namespace {

constexpr int64_t kMostPlayed = 3'000'000;  // actions of a schedule that is played; beyond, formulas

double width_of(const KeptWidths& kept) {
  return kept.stream + kept.other + kept.recomputable + kept.f32;
}

void put(Load& load, const BlockCost& b) {
  load.linear_flop += b.linear_flop, load.attention_flop += b.attention_flop;
  load.elementwise_width += b.elementwise_width, load.input_width += b.input_width;
  load.scratch_width = std::max(load.scratch_width, b.scratch_width);
  if (b.layer >= 0) {
    load.block_kept_width = std::max(load.block_kept_width, width_of(b.kept));
    load.block_again_width = std::max(load.block_again_width, b.kept.recomputable);
    load.layer_parameters = std::max(load.layer_parameters, static_cast<double>(b.parameters()));
    load.layers += 1;
    load.expert_layers += b.expert_parameters > 0 ? 1 : 0;
  }
  load.dense_parameters += static_cast<double>(b.parameters() - b.expert_parameters);
  load.expert_parameters += static_cast<double>(b.expert_parameters);
  load.multiplied_parameters += static_cast<double>(b.multiplied_parameters);
  load.block_parameters = std::max(load.block_parameters, static_cast<double>(b.parameters()));
  load.kept += b.kept;
}

Load load_of(const ModelCost& model, const std::vector<std::pair<int, int>>& ranges) {
  Load load;
  const int last = static_cast<int>(model.blocks.size()) - 1;
  for (const auto& [begin, end] : ranges) {
    for (int i = begin; i < end; ++i) put(load, model.blocks[static_cast<size_t>(i)]);
    load.embedding |= begin == 0;
    load.head |= end == last + 1;
  }
  // A tied matrix lies with the embedding and, where that is another worker's, with the head again.
  if (load.head && !load.embedding)
    load.dense_parameters += static_cast<double>(model.blocks.front().tied_parameters);
  return load;
}

// Idle time of the pipeline over its work, by formula, for a worker with these costs of a micro-batch.
double idle_seconds(const PlanMesh& mesh, const LoadTime& time) {
  const auto behind = static_cast<double>(mesh.pipeline - 1);
  switch (mesh.schedule) {
    case ScheduleKind::kGPipe:
    case ScheduleKind::kOneForwardOneBackward:
      return behind * time.total();
    case ScheduleKind::kInterleaved:
      return behind * time.total() / mesh.chunks;
    case ScheduleKind::kZeroBubbleH1:
      return behind * std::max(time.forward, time.forward + time.backward - time.weight) / mesh.chunks;
    case ScheduleKind::kZeroBubbleV:
      return behind * (time.forward + std::max(0.0, time.backward - time.weight)) / 2;
  }
  return 0;
}

}  // namespace

Stages cut_stages(const ModelCost& model, ScheduleKind schedule, int workers, int chunks) {
  std::vector<double> costs;
  for (const BlockCost& b : model.blocks) costs.push_back(b.linear_flop + b.attention_flop);
  // Only the placement of stages is asked of the schedule.
  const PipelineSchedule placement{.kind = schedule, .workers = workers, .chunks = chunks, .actions = {}};
  Stages out;
  out.cuts = balance(costs, workers * chunks);
  const auto range = [&](int stage) {
    return std::pair(out.cuts[static_cast<size_t>(stage)], out.cuts[static_cast<size_t>(stage) + 1]);
  };
  for (int stage = 0; stage < workers * chunks; ++stage) out.stages.push_back(load_of(model, {range(stage)}));
  for (int worker = 0; worker < workers; ++worker) {
    std::vector<std::pair<int, int>> ranges;
    for (int chunk = 0; chunk < chunks; ++chunk) ranges.push_back(range(placement.stage_of(worker, chunk)));
    const Load load = load_of(model, ranges);
    if (std::ranges::find(out.groups, load, &Stages::Group::load) == out.groups.end())
      out.groups.push_back({load, worker});
  }
  return out;
}

std::string PlanMesh::axes() const {
  std::string out;
  const auto add = [&](const char* name, int64_t size) {
    if (size > 1) out += fmt::format("{}{}={}", out.empty() ? "" : " ", name, size);
  };
  add("data", data), add("expert", expert), add("context", context), add("pipeline", pipeline);
  add("tensor", tensor);
  return out.empty() ? "1 worker" : out;
}

std::string PlanMesh::text() const {
  std::string out = axes();
  if (zero > 0) out += fmt::format(", ZeRO {}", zero);
  if (pipeline > 1) out += fmt::format(", {}", config_name(schedule));
  if (chunks > 1) out += fmt::format(" with {} chunks", chunks);
  if (micro_sequences > 0) {
    out += fmt::format(", micro-batches of {} sequence{}", micro_sequences, micro_sequences == 1 ? "" : "s");
  }
  if (recompute != Recompute::kNone) out += fmt::format(", {} recomputation", config_name(recompute));
  return out;
}

Planner::Planner(Job job, MachineSpec machine)
    : state_(std::make_unique<State>(std::move(job), std::move(machine))) {
  const Job& j = state_->job;
  if (!(j.optimizer_bytes >= 0))
    throw UserError("optimizer", "must have state of 0 bytes a parameter or more");
  if (j.sequences < 1) throw UserError("batch.sequences", "must be at least 1");
  const MachineSpec& m = state_->machine;
  if (m.usable_bytes() <= 0 || m.memory_gb_s <= 0 || peak_flops(j, m) <= 0)
    throw UserError(m.name, "a machine without memory, bandwidth or operations");
}
Planner::~Planner() = default;
Planner::Planner(Planner&&) noexcept = default;
const Job& Planner::job() const {
  return state_->job;
}
const MachineSpec& Planner::machine() const {
  return state_->machine;
}

Result<void> Planner::can_run(const PlanMesh& mesh) const {
  const ModelCost& m = state_->job.model;
  const auto invalid = [](std::string why) { return Error{ErrorCode::kInvalid, std::move(why)}; };
  for (const int64_t size : {mesh.data, mesh.expert, mesh.context, mesh.pipeline, mesh.tensor}) {
    if (size < 1) return invalid("an axis has at least 1 worker");
  }
  if (mesh.zero < 0 || mesh.zero > 3) return invalid(fmt::format("ZeRO {}; stages are 0 to 3", mesh.zero));
  if (m.heads % mesh.tensor != 0 || m.kv_heads % mesh.tensor != 0 || m.hidden % mesh.tensor != 0) {
    return invalid(fmt::format("tensor {} does not divide {} heads, {} key-value heads and width {}",
                               mesh.tensor, m.heads, m.kv_heads, m.hidden));
  }
  if (mesh.context > 1 && m.length % (2 * mesh.context) != 0) {
    return invalid(fmt::format("context {} needs a length that {} divides (zigzag chunks), not {}",
                               mesh.context, 2 * mesh.context, m.length));
  }
  if (mesh.expert > 1 && (m.experts.count == 0 || m.experts.count % mesh.expert != 0)) {
    return invalid(fmt::format("expert {} does not divide {} experts", mesh.expert, m.experts.count));
  }
  if (mesh.data * mesh.expert > state_->job.sequences) {
    return invalid(fmt::format("{} sequences cannot be shared by {} replicas (data x expert)",
                               state_->job.sequences, mesh.data * mesh.expert));
  }
  if (mesh.micro_sequences < 0) return invalid("micro-batches have at least 1 sequence");
  if (mesh.pipeline == 1) {
    if (mesh.chunks != 1) return invalid("chunks without a pipeline");
    return {};
  }
  const int64_t blocks = static_cast<int64_t>(m.blocks.size());
  if (mesh.pipeline > blocks || mesh.chunks < 1 || mesh.pipeline * mesh.chunks > blocks) {
    return invalid(
        fmt::format("pipeline {} with {} chunks needs as many blocks; the model has {} (embedding, {} "
                    "layers, head)",
                    mesh.pipeline, mesh.chunks, blocks, m.num_layers()));
  }
  return can_schedule(mesh.schedule, {static_cast<int>(mesh.pipeline),
                                      batch_of(state_->job, mesh).microbatches, mesh.chunks});
}

const Stages& Planner::State::stages_of(const PlanMesh& mesh) {
  const bool v = mesh.schedule == ScheduleKind::kZeroBubbleV;
  const auto key = std::tuple(mesh.pipeline, mesh.chunks, v);
  auto found = stages.find(key);
  if (found == stages.end()) {
    const auto kind = v ? ScheduleKind::kZeroBubbleV : ScheduleKind::kOneForwardOneBackward;
    found =
        stages.emplace(key, cut_stages(job.model, kind, static_cast<int>(mesh.pipeline), mesh.chunks)).first;
  }
  return found->second;
}

Estimate Planner::State::estimate(const PlanMesh& mesh) {
  const Stages& cut = stages_of(mesh);
  Estimate e;
  for (const Stages::Group& group : cut.groups) {
    e.memory_bytes =
        std::max(e.memory_bytes, memory_of(job, machine, mesh, group.load, group.worker).total());
    const LoadTime time = time_of(job, machine, mesh, group.load);
    double seconds = static_cast<double>(batch_of(job, mesh).microbatches) * time.total();
    if (mesh.pipeline > 1) {
      seconds += idle_seconds(mesh, time) +
                 2 * static_cast<double>(mesh.pipeline * mesh.chunks - 1) * send_seconds(job, machine, mesh);
    }
    for (const AxisTraffic& axis : traffic_of(job, machine, mesh, group.load, time)) {
      if (axis.axis == "data") seconds += axis.exposed_seconds;
    }
    seconds += optimizer_seconds(job, machine, mesh, group.load);
    e.step_seconds = std::max(e.step_seconds, seconds);
  }
  e.fits = e.memory_bytes <= machine.usable_bytes();
  return e;
}

Prediction Planner::predict(const PlanMesh& asked) {
  const Result<void> possible = can_run(asked);
  CHECK(possible.ok(), "{}: {}", asked.text(), possible.error().message);
  State& s = *state_;
  const Stages& cut = s.stages_of(asked);
  const Batch batch = batch_of(s.job, asked);
  Prediction p;
  p.mesh = asked, p.usable_bytes = s.machine.usable_bytes(), p.stage_cuts = cut.cuts;
  LoadTime slowest;
  const Load* slowest_load = nullptr;
  for (const Stages::Group& group : cut.groups) {
    const MemoryByKind memory = memory_of(s.job, s.machine, asked, group.load, group.worker);
    if (memory.total() > p.memory.total()) p.memory = memory, p.fullest_stage = group.worker;
    const LoadTime time = time_of(s.job, s.machine, asked, group.load);
    if (slowest_load == nullptr || time.total() > slowest.total()) slowest = time, slowest_load = &group.load;
    p.optimizer_seconds =
        std::max(p.optimizer_seconds, optimizer_seconds(s.job, s.machine, asked, group.load));
  }
  p.fits = p.memory.total() <= p.usable_bytes;
  p.traffic = traffic_of(s.job, s.machine, asked, *slowest_load, slowest);
  const auto micro = static_cast<double>(batch.microbatches);
  const double work = micro * slowest.total();
  p.compute_seconds = micro * slowest.compute;
  double pipeline_seconds = work;
  if (asked.pipeline > 1) {
    const PipelineSize size{static_cast<int>(asked.pipeline), batch.microbatches, asked.chunks};
    if (3 * asked.pipeline * asked.chunks * batch.microbatches <= kMostPlayed) {
      PipelineCosts costs{.stages = {}, .send_seconds = send_seconds(s.job, s.machine, asked)};
      for (const Load& load : cut.stages) {
        const LoadTime time = time_of(s.job, s.machine, asked, load);
        costs.stages.push_back({.forward = time.forward, .backward = time.backward, .weight = time.weight});
      }
      pipeline_seconds = simulate(make_schedule(asked.schedule, size), costs).value().seconds;
    } else {
      pipeline_seconds += idle_seconds(asked, slowest);
    }
    p.bubble = std::max(0.0, 1 - work / pipeline_seconds);
  }
  p.step_seconds = pipeline_seconds + p.optimizer_seconds;
  for (const AxisTraffic& axis : p.traffic) {
    if (axis.axis == "data") p.step_seconds += axis.exposed_seconds;
  }
  const auto tokens = static_cast<double>(s.job.sequences * s.job.model.length);
  p.flop = tokens * s.job.model.flop_per_token();
  p.tokens_per_second = tokens / p.step_seconds;
  p.peak_share =
      p.flop / p.step_seconds / (static_cast<double>(asked.world()) * peak_flops(s.job, s.machine));
  return p;
}

}  // namespace flywheel::train
