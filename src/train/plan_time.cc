// What a step takes: computation, traffic on each axis, the optimizer.
#include <algorithm>

#include "base/check.h"
#include "train/plan_internal.h"

namespace flywheel::train {
namespace {

constexpr double kAttentionBackward = 2.5;  // of its forward: the scores are made again (Dao et al. 2022)

double compute_value_bytes(const Job& job, const MachineSpec& machine) {
  return job.compute == ComputeType::kF32 || machine.kind == DeviceKind::kCpu ? 4 : 2;
}

// Attention is computed in f32 on CPUs, in bf16 also where products are in fp8.
double attention_flops(const Job& job, const MachineSpec& machine) {
  const bool f32 = machine.kind == DeviceKind::kCpu || job.compute == ComputeType::kF32;
  return (f32 ? machine.f32_tflops : machine.bf16_tflops) * 1e12 * machine.attention_efficiency;
}

int64_t axis_size(const PlanMesh& mesh, AxisName axis) {
  switch (axis) {
    case AxisName::kTensor:
      return mesh.tensor;
    case AxisName::kContext:
      return mesh.context;
    case AxisName::kExpert:
      return mesh.expert;
    case AxisName::kData:
      return mesh.data;
    case AxisName::kPipeline:
      return mesh.pipeline;
  }
  CHECK(false, "no axis {}", static_cast<int>(axis));
}

// Seconds and bytes for one member of a ring.
struct Ring {
  double bytes = 0, seconds = 0;
  void operator+=(const Ring& more) { bytes += more.bytes, seconds += more.seconds; }
  Ring times(double n) const { return {bytes * n, seconds * n}; }
};

// All-gather or reduce-scatter of `bytes` (the whole) over n members.
Ring gather(const Link& link, double bytes, int64_t n) {
  if (n == 1) return {};
  const auto hops = static_cast<double>(n - 1);
  const double sent = bytes * hops / static_cast<double>(n);
  return {sent, sent / link.bytes_per_second + std::min(hops, 64.0) * link.latency_seconds};
}

// One forward pass of a micro-batch through a load, by axis. Backward: tensor 1.5 times (inputs are gathered
// again), context twice (gradients go around too), expert once more.
struct LayerTraffic {
  Ring tensor, context, expert;
};
LayerTraffic forward_traffic(const Job& job, const MachineSpec& machine, const PlanMesh& mesh,
                             const Load& load) {
  const double tokens = batch_of(job, mesh).tokens, size = compute_value_bytes(job, machine);
  const double stream = tokens * static_cast<double>(job.model.hidden) * size;
  const auto t = static_cast<double>(mesh.tensor);
  LayerTraffic traffic;
  if (mesh.tensor > 1) {
    // Into and out of attention and MLP; embedding and head once each.
    const double times =
        4.0 * static_cast<double>(load.layers) + (load.embedding ? 1 : 0) + (load.head ? 1 : 0);
    traffic.tensor = gather(link_of(machine, mesh, AxisName::kTensor), stream, mesh.tensor).times(times);
  }
  if (mesh.context > 1) {
    const Link link = link_of(machine, mesh, AxisName::kContext);
    const double all_kv = tokens * static_cast<double>(mesh.context * 2 * job.model.kv_width) / t * size;
    traffic.context = gather(link, all_kv, mesh.context).times(static_cast<double>(load.layers));
  }
  if (mesh.expert > 1) {
    const Link link = link_of(machine, mesh, AxisName::kExpert);
    const double routed = stream / t * static_cast<double>(job.model.experts.per_token);
    traffic.expert = gather(link, routed, mesh.expert).times(2.0 * static_cast<double>(load.expert_layers));
  }
  return traffic;
}

}  // namespace

double peak_flops(const Job& job, const MachineSpec& machine) {
  const bool in_f32 =
      machine.kind == DeviceKind::kCpu && job.compute != ComputeType::kBF16;  // train/rounding.h
  if (in_f32) return machine.f32_tflops * 1e12;
  switch (job.compute) {
    case ComputeType::kF32:
      return machine.f32_tflops * 1e12;
    case ComputeType::kBF16:
    case ComputeType::kF16:
      return machine.bf16_tflops * 1e12;
    case ComputeType::kFP8:
      return (machine.fp8_tflops > 0 ? machine.fp8_tflops : machine.bf16_tflops) * 1e12;
  }
  CHECK(false, "no compute type {}", static_cast<int>(job.compute));
}

Link link_of(const MachineSpec& machine, const PlanMesh& mesh, AxisName axis) {
  const int64_t size = axis_size(mesh, axis);
  int64_t stride = 1;  // ranks from a member to the next
  for (const AxisName inner :
       {AxisName::kTensor, AxisName::kContext, AxisName::kExpert, AxisName::kData, AxisName::kPipeline}) {
    if (inner == axis) break;
    stride *= axis_size(mesh, inner);
  }
  const int64_t host = machine.devices_per_host;
  if (stride * size <= host) return {machine.host_gb_s * 1e9, machine.host_latency_us * 1e-6, false};
  // Members in the same host share its adapters: each host's part goes through all of theirs at once.
  const auto together = static_cast<double>(std::clamp<int64_t>(host / stride, 1, size));
  double rate = machine.network_gb_s * (axis == AxisName::kPipeline ? 1 : together);
  if (machine.host_gb_s > 0 && together > 1) rate = std::min(rate, machine.host_gb_s);
  return {rate * 1e9, machine.network_latency_us * 1e-6, true};
}

LoadTime time_of(const Job& job, const MachineSpec& machine, const PlanMesh& mesh, const Load& load) {
  const StateBytes bytes = state_bytes(job, machine);
  const double tokens = batch_of(job, mesh).tokens / static_cast<double>(mesh.tensor);
  const double peak = peak_flops(job, machine) * machine.matrix_efficiency;
  const double attention_peak = attention_flops(job, machine);
  const double bandwidth = machine.memory_gb_s * 1e9 * machine.memory_efficiency;
  const double weights = load.multiplied_parameters / static_cast<double>(mesh.tensor) * bytes.weight;
  const double linear = std::max(tokens * load.linear_flop / peak, weights / bandwidth);
  const double attention = tokens * load.attention_flop / attention_peak;
  const double elementwise = tokens * load.elementwise_width * bytes.value / bandwidth;
  const double forward = linear + attention + elementwise;
  double backward = linear + kAttentionBackward * attention + 1.5 * elementwise;
  if (mesh.recompute == Recompute::kFull) backward += forward;
  if (mesh.recompute == Recompute::kSelective) backward += 0.5 * elementwise;

  const LayerTraffic traffic = forward_traffic(job, machine, mesh, load);
  LoadTime time;
  time.compute = forward + backward + linear;
  const double again = mesh.recompute == Recompute::kFull ? 1 : 0;
  // The ring of keys and values turns beside attention.
  time.forward = forward + traffic.tensor.seconds + traffic.expert.seconds +
                 std::max(0.0, traffic.context.seconds - attention);
  time.backward = backward + (1.5 + again) * traffic.tensor.seconds + (1 + again) * traffic.expert.seconds +
                  std::max(0.0, 2 * traffic.context.seconds - kAttentionBackward * attention);
  time.weight = linear;
  return time;
}

double send_seconds(const Job& job, const MachineSpec& machine, const PlanMesh& mesh) {
  if (mesh.pipeline == 1) return 0;
  const Link link = link_of(machine, mesh, AxisName::kPipeline);
  const double bytes = batch_of(job, mesh).tokens / static_cast<double>(mesh.tensor) *
                       static_cast<double>(job.model.hidden) * compute_value_bytes(job, machine);
  return bytes / link.bytes_per_second + link.latency_seconds;
}

std::vector<AxisTraffic> traffic_of(const Job& job, const MachineSpec& machine, const PlanMesh& mesh,
                                    const Load& load, const LoadTime& time) {
  const Batch batch = batch_of(job, mesh);
  const auto micro = static_cast<double>(batch.microbatches), t = static_cast<double>(mesh.tensor);
  const LayerTraffic forward = forward_traffic(job, machine, mesh, load);
  const double again = mesh.recompute == Recompute::kFull ? 1 : 0;
  std::vector<AxisTraffic> all;
  const auto add = [&](const char* name, AxisName axis, const Ring& ring, double exposed) {
    all.push_back({name, axis_size(mesh, axis), ring.bytes, ring.seconds, std::max(0.0, exposed),
                   link_of(machine, mesh, axis).crosses_hosts});
  };
  if (mesh.tensor > 1) {
    const Ring ring = forward.tensor.times((2.5 + again) * micro);
    add("tensor", AxisName::kTensor, ring, ring.seconds);
  }
  if (mesh.context > 1) {
    const double attention = batch.tokens / t * load.attention_flop / attention_flops(job, machine);
    const double exposed = std::max(0.0, forward.context.seconds - attention) +
                           std::max(0.0, 2 * forward.context.seconds - kAttentionBackward * attention);
    add("context", AxisName::kContext, forward.context.times(3 * micro), exposed * micro);
  }
  if (mesh.expert > 1) {
    const Ring ring = forward.expert.times((2 + again) * micro);
    add("expert", AxisName::kExpert, ring, ring.seconds);
  }
  if (mesh.pipeline > 1) {
    const double send = send_seconds(job, machine, mesh);
    const Link link = link_of(machine, mesh, AxisName::kPipeline);
    const double bytes = (send - link.latency_seconds) * link.bytes_per_second;
    // Each chunk's output forward, each input's gradient back; exposed only while the pipeline fills.
    add("pipeline", AxisName::kPipeline, {2 * micro * mesh.chunks * bytes, 2 * micro * mesh.chunks * send},
        2 * static_cast<double>(mesh.pipeline - 1) * send);
  }
  // Dense parts are replicated over data, expert and context together, experts over data and context.
  const int64_t dense_replicas = mesh.data * mesh.expert * mesh.context,
                expert_replicas = mesh.data * mesh.context;
  if (dense_replicas > 1) {
    const StateBytes bytes = state_bytes(job, machine);
    const Link link = link_of(machine, mesh,
                              mesh.data > 1     ? AxisName::kData
                              : mesh.expert > 1 ? AxisName::kExpert
                                                : AxisName::kContext);
    const auto once = [&](double bytes_each) {
      Ring ring = gather(link, load.dense_parameters / t * bytes_each, dense_replicas);
      if (load.expert_parameters > 0) {
        ring += gather(link, load.expert_parameters / t / static_cast<double>(mesh.expert) * bytes_each,
                       expert_replicas);
      }
      return ring;
    };
    const Ring gradients = once(bytes.gradient), parameters = once(bytes.weight);
    Ring ring;
    double exposed = 0;
    const double hides = machine.overlap;
    const double last_backward = hides * (time.backward + time.weight), next_forward = hides * time.forward;
    if (mesh.zero <= 1) {  // reduced once, behind the last micro-batch's backward
      ring += gradients, ring += mesh.zero == 0 ? gradients : parameters;
      exposed = mesh.zero == 0 ? 2 * gradients.seconds - last_backward
                               : std::max(0.0, gradients.seconds - last_backward) +
                                     std::max(0.0, parameters.seconds - next_forward);
    } else if (mesh.zero == 2) {  // reduced after every micro-batch: no worker keeps whole gradients
      ring += gradients.times(micro), ring += parameters;
      exposed = micro * std::max(0.0, gradients.seconds - last_backward) +
                std::max(0.0, parameters.seconds - next_forward);
    } else {  // parameters are gathered for each forward and each backward
      ring += gradients.times(micro), ring += parameters.times(2 * micro);
      exposed = micro * (std::max(0.0, parameters.seconds - next_forward) +
                         std::max(0.0, gradients.seconds + parameters.seconds - last_backward));
    }
    add("data", AxisName::kData, ring, exposed);
    all.back().size = dense_replicas;
    all.back().crosses_hosts = link.crosses_hosts;
  }
  return all;
}

double optimizer_seconds(const Job& job, const MachineSpec& machine, const PlanMesh& mesh, const Load& load) {
  const StateBytes bytes = state_bytes(job, machine);
  const double parameters = load.dense_parameters / static_cast<double>(mesh.tensor) +
                            load.expert_parameters / static_cast<double>(mesh.tensor * mesh.expert);
  const double shards = mesh.zero >= 1 ? static_cast<double>(mesh.sharing()) : 1;
  // Gradients are read twice (norm, update) and cleared; state is read and written; weights are written, and
  // read and written once more for each packed copy.
  const double moved = 3 * bytes.gradient + 2 * bytes.optimizer + 2 * bytes.weight;
  const double copies = bytes.packed > 0 ? 2 * bytes.weight + bytes.packed : 0;
  const double bandwidth = machine.memory_gb_s * 1e9 * machine.memory_efficiency;
  return (parameters / shards * moved + parameters * copies) / bandwidth;
}

}  // namespace flywheel::train
