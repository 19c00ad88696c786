// The best meshes for a world: every product of axes that the model, the batch and the world allow.
//
// Axes must divide the world, and each must divide something of the model (heads, length, blocks, experts) or
// of the batch, which leaves few: a world of a million has some hundreds. For each, every ZeRO stage,
// schedule, micro-batch and recomputation is estimated by formula; the fastest that fits stands for its axes,
// and the best of those are predicted exactly.
#include <algorithm>
#include <limits>
#include <optional>

#include "base/check.h"
#include "base/progress.h"
#include "train/optimizer_state.h"
#include "train/plan_search_internal.h"

namespace flywheel::train {
namespace {

constexpr int64_t kMostWorld = 1 << 24;
constexpr int64_t kLargestMicro = 64;  // sequences; more never fill a device better
// A mesh is preferred to one that is this much faster but has one thing more to it.
constexpr double kSimplicity = 0.004;

std::vector<int64_t> divisors(int64_t n) {
  std::vector<int64_t> low, high;
  for (int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    low.push_back(d);
    if (d != n / d) high.push_back(n / d);
  }
  low.insert(low.end(), high.rbegin(), high.rend());
  return low;
}

// Calls visit for every product of axes of this world that can run.
template <typename Visit>
void for_axes(const Job& job, const MachineSpec& machine, int64_t world, Visit visit) {
  const ModelCost& m = job.model;
  const auto blocks = static_cast<int64_t>(m.blocks.size());
  for (const int64_t tensor : divisors(world)) {
    if (tensor > machine.devices_per_host || m.kv_heads % tensor != 0 || m.heads % tensor != 0) continue;
    for (const int64_t pipeline : divisors(world / tensor)) {
      if (pipeline > blocks) break;
      for (const int64_t context : divisors(world / tensor / pipeline)) {
        if (context > 1 && m.length % (2 * context) != 0) continue;
        const int64_t replicas = world / tensor / pipeline / context;
        if (job.sequences % replicas != 0) continue;
        for (const int64_t expert : divisors(m.experts.count > 0 ? m.experts.count : 1)) {
          if (replicas % expert != 0) continue;
          PlanMesh mesh{
              .data = replicas / expert, .expert = expert, .context = context, .pipeline = pipeline};
          mesh.tensor = tensor;
          if (!visit(mesh)) return;
        }
      }
    }
  }
}

struct Candidate {
  PlanMesh mesh;
  Estimate estimate;
  double score = std::numeric_limits<double>::infinity();  // less is better
};

double complexity(const PlanMesh& mesh) {
  double things = 0;
  things += mesh.tensor > 1, things += mesh.context > 1, things += mesh.pipeline > 1;
  things += mesh.zero >= 2, things += mesh.zero >= 3, things += mesh.recompute != Recompute::kNone;
  things += mesh.pipeline > 1 && mesh.schedule != ScheduleKind::kOneForwardOneBackward;
  return things;
}

double score_of(double seconds, const PlanMesh& mesh) {
  return seconds * (1 + kSimplicity * complexity(mesh));
}

// What one product of axes can do: the best that fits, and the one that needs the least memory.
struct AxesResult {
  std::optional<Candidate> best;
  Candidate least;
  int64_t considered = 0;
};

class Search {
 public:
  explicit Search(Planner& planner, Planner::State& state) : planner_(planner), state_(state) {}

  AxesResult axes(const PlanMesh& axes) {
    AxesResult result;
    result.least.estimate.memory_bytes = std::numeric_limits<double>::infinity();
    const int64_t share = state_.job.sequences / (axes.data * axes.expert);
    PlanMesh mesh = axes;
    // Once one fits, what only saves more memory is no faster: more recomputation, or ZeRO beyond 1 (whose
    // sharded update may be).
    const auto consider = [&] {
      if (!planner_.can_run(mesh).ok()) return;
      const int most = axes.data * axes.expert * axes.context > 1 ? 3 : 0;
      for (const Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
        mesh.recompute = recompute;
        int fits_from = 4;
        for (mesh.zero = 0; mesh.zero <= most && !(fits_from < 4 && mesh.zero > 1); ++mesh.zero) {
          ++result.considered;
          const Estimate e = state_.estimate(mesh);
          const Candidate candidate{mesh, e, score_of(e.step_seconds, mesh)};
          if (e.memory_bytes < result.least.estimate.memory_bytes) result.least = candidate;
          if (e.fits && (!result.best || candidate.score < result.best->score)) result.best = candidate;
          if (e.fits) fits_from = std::min(fits_from, mesh.zero);
        }
        mesh.zero = 0;
        if (fits_from <= 1) break;
      }
    };
    for (mesh.micro_sequences = 1; mesh.micro_sequences <= std::min(share, kLargestMicro);
         mesh.micro_sequences *= 2) {
      if (share % mesh.micro_sequences != 0) break;
      if (axes.pipeline == 1) {
        mesh.schedule = ScheduleKind::kOneForwardOneBackward, mesh.chunks = 1;
        consider();
        continue;
      }
      for (const auto& [kind, chunks] :
           std::initializer_list<std::pair<ScheduleKind, int>>{{ScheduleKind::kOneForwardOneBackward, 1},
                                                               {ScheduleKind::kInterleaved, 2},
                                                               {ScheduleKind::kInterleaved, 4},
                                                               {ScheduleKind::kZeroBubbleH1, 1},
                                                               {ScheduleKind::kZeroBubbleV, 2}}) {
        mesh.schedule = kind, mesh.chunks = chunks;
        consider();
      }
    }
    return result;
  }

  // Where its time goes, and what is better and worse in it than in the first.
  std::vector<std::string> reasons(const Prediction& p, const Prediction& first) {
    std::vector<std::string> out = {where_time_goes(p)};
    const double longer = 100 * (p.step_seconds / first.step_seconds - 1);
    const double less = first.memory.total() - p.memory.total();
    out.push_back(fmt::format("against the first: a step takes {:.1f}% {}, the fullest worker needs {} {}",
                              std::abs(longer), longer >= 0 ? "longer" : "less", human_bytes(std::abs(less)),
                              less >= 0 ? "less" : "more"));
    return out;
  }

  // Sentences that compare the chosen mesh with its neighbours, each tried out.
  std::vector<std::string> reasons(const Prediction& p) {
    std::vector<std::string> out = {where_time_goes(p)};
    const PlanMesh& mesh = p.mesh;
    const auto smaller = [&](const char* name, int64_t PlanMesh::*axis) {
      if (mesh.*axis == 1) return;
      PlanMesh other{
          .data = mesh.data, .expert = mesh.expert, .context = mesh.context, .pipeline = mesh.pipeline};
      other.tensor = mesh.tensor;
      int64_t factor = 2;
      while (mesh.*axis % factor != 0) ++factor;
      other.*axis /= factor;
      other.data *= factor;
      const std::string head = fmt::format("{} {}, not {}: ", name, mesh.*axis, other.*axis);
      if (!planner_.can_run(other).ok() || state_.job.sequences % (other.data * other.expert) != 0) {
        out.push_back(head + fmt::format("{} sequences do not share out over {} data replicas",
                                         state_.job.sequences, other.data * other.expert));
        return;
      }
      const AxesResult result = axes(other);
      compare(out, head, p, result.best ? &*result.best : nullptr, result.least);
    };
    smaller("tensor", &PlanMesh::tensor), smaller("pipeline", &PlanMesh::pipeline);
    smaller("context", &PlanMesh::context);
    const auto without = [&](const std::string& head, auto change) {
      PlanMesh other = mesh;
      change(other);
      if (!planner_.can_run(other).ok()) return;
      const Candidate candidate{other, state_.estimate(other), 0};
      compare(out, head, p, candidate.estimate.fits ? &candidate : nullptr, candidate);
    };
    if (mesh.zero > 0) {
      without(fmt::format("ZeRO {}, not {}: ", mesh.zero, mesh.zero - 1), [](PlanMesh& m) { --m.zero; });
    }
    if (mesh.recompute != Recompute::kNone) {
      without("recomputation: without ", [](PlanMesh& m) { m.recompute = Recompute::kNone; });
    }
    if (mesh.pipeline > 1 && mesh.schedule != ScheduleKind::kOneForwardOneBackward) {
      without(fmt::format("{}, not 1f1b: ", config_name(mesh.schedule)),
              [](PlanMesh& m) { m.schedule = ScheduleKind::kOneForwardOneBackward, m.chunks = 1; });
    }
    return out;
  }

 private:
  static std::string where_time_goes(const Prediction& p) {
    const auto share = [&](double seconds) { return 100 * seconds / p.step_seconds; };
    std::string text = fmt::format("computing takes {:.0f}% of the step", share(p.compute_seconds));
    for (const AxisTraffic& axis : p.traffic) {
      if (axis.axis == "pipeline") continue;  // within the bubble
      if (share(axis.exposed_seconds) >= 0.5) {
        text += fmt::format(", waiting for {} traffic {:.0f}%", axis.axis, share(axis.exposed_seconds));
      } else {
        text += fmt::format(", {} traffic hides behind it", axis.axis);
      }
    }
    if (p.bubble > 0) text += fmt::format(", the pipeline idles {:.1f}%", p.bubble * 100);
    return text + fmt::format(", the optimizer {:.1f}%", share(p.optimizer_seconds));
  }

  void compare(std::vector<std::string>& out, const std::string& head, const Prediction& p,
               const Candidate* other, const Candidate& least) {
    if (other == nullptr) {
      out.push_back(head + fmt::format("the fullest worker would need {}, {} are there",
                                       human_bytes(least.estimate.memory_bytes),
                                       human_bytes(p.usable_bytes)));
      return;
    }
    const double own = state_.estimate(p.mesh).step_seconds;
    const double longer = 100 * (other->estimate.step_seconds / own - 1);
    if (longer >= 0.1) {
      out.push_back(head + fmt::format("a step would take {:.1f}% longer", longer));
    } else {
      const double saved = other->estimate.memory_bytes - p.memory.total();
      out.push_back(head + (saved > 0 ? fmt::format("no slower, and needs {} less", human_bytes(saved))
                            : longer > -0.1
                                ? "just as fast"
                                : fmt::format("{:.1f}% faster by the formulas, not when played or "
                                              "for one thing less to go wrong",
                                              -longer)));
    }
  }

  Planner& planner_;
  Planner::State& state_;
};

// The largest world up to this one that some mesh fills.
int64_t nearest_world(const Job& job, const MachineSpec& machine, int64_t world) {
  const ModelCost& m = job.model;
  const std::vector<int64_t> replicas = divisors(job.sequences);
  int64_t nearest = 1;
  for (int64_t tensor = 1; tensor <= std::min(machine.devices_per_host, m.kv_heads); ++tensor) {
    if (m.kv_heads % tensor != 0 || m.heads % tensor != 0) continue;
    for (int64_t pipeline = 1; pipeline <= std::ssize(m.blocks); ++pipeline) {
      for (int64_t context = 1; 2 * context <= m.length; ++context) {
        if (context > 1 && m.length % (2 * context) != 0) continue;
        if (tensor * pipeline * context > world) break;
        const auto above = std::ranges::upper_bound(replicas, world / (tensor * pipeline * context));
        if (above != replicas.begin())
          nearest = std::max(nearest, tensor * pipeline * context * *(above - 1));
      }
    }
  }
  return nearest;
}

}  // namespace

Plan Planner::best(int64_t world, int count) {
  if (world < 1 || world > kMostWorld)
    throw UserError("--world", fmt::format("{} workers; from 1 to {} are possible", world, kMostWorld));
  State& s = *state_;
  Search search(*this, s);
  Plan plan;
  std::vector<Candidate> found;
  std::optional<Candidate> least;
  for_axes(s.job, s.machine, world, [&](const PlanMesh& axes) {
    const AxesResult result = search.axes(axes);
    plan.considered += result.considered;
    if (result.best) found.push_back(*result.best);
    if (result.considered > 0 &&
        (!least || result.least.estimate.memory_bytes < least->estimate.memory_bytes)) {
      least = result.least;
    }
    return true;
  });
  if (!found.empty()) {
    std::ranges::sort(found, {}, &Candidate::score);
    found.resize(std::min(found.size(), static_cast<size_t>(4 * count)));
    for (const Candidate& candidate : found) plan.best.push_back(predict(candidate.mesh));
    std::ranges::stable_sort(plan.best, {},
                             [](const Prediction& p) { return score_of(p.step_seconds, p.mesh); });
    plan.best.resize(std::min(plan.best.size(), static_cast<size_t>(count)));
    for (Prediction& p : plan.best)
      p.reasons = &p == &plan.best.front() ? search.reasons(p) : search.reasons(p, plan.best.front());
    return plan;
  }

  if (!least) {
    plan.refusal =
        fmt::format("no mesh of {} workers divides this job: {} sequences of {}, {} heads, {} layers", world,
                    s.job.sequences, s.job.model.length, s.job.model.heads, s.job.model.num_layers());
    plan.would_help.push_back(fmt::format("{} workers", nearest_world(s.job, s.machine, world)));
    const int64_t rounded = (s.job.sequences + world - 1) / world * world;
    if (rounded != s.job.sequences) plan.would_help.push_back(fmt::format("batch.sequences {}", rounded));
    return plan;
  }
  plan.refusal = fmt::format(
      "does not fit: the least that {} workers need is {} on the fullest ({}); {} are there", world,
      human_bytes(least->estimate.memory_bytes), least->mesh.text(), human_bytes(s.machine.usable_bytes()));
  const auto try_out = [&](const std::string& what, Job job, MachineSpec machine, int64_t workers) {
    Planner other(std::move(job), std::move(machine));
    Search there(other, *other.state_);
    bool fits = false;
    for_axes(other.job(), other.machine(), workers, [&](const PlanMesh& axes) {
      fits = there.axes(axes).best.has_value();
      return !fits;
    });
    if (fits) plan.would_help.push_back(what);
    return fits;
  };
  for (int64_t more = 2; more <= 64 && world * more <= kMostWorld; more *= 2) {
    if (try_out(fmt::format("{} workers", world * more), s.job, s.machine, world * more)) break;
  }
  for (const std::string& name : machine_names()) {
    const MachineSpec bigger = named_machine(name).value();
    if (bigger.memory_gb > s.machine.memory_gb && s.machine.kind == DeviceKind::kGpu &&
        try_out("--machine " + name, s.job, bigger, world)) {
      break;
    }
  }
  if (s.job.optimizer == OptimizerType::kAdamW) {
    Job job = s.job;
    job.optimizer = OptimizerType::kAdamW8Bit;
    job.optimizer_bytes -= 8 - (2 + 2 * 4.0 / kStateBlock);  // two codes, and a scale a block for each
    try_out("optimizer.type adamw_8bit", job, s.machine, world);
  }
  MachineSpec larger = s.machine;
  larger.memory_gb = least->estimate.memory_bytes / 1e9 + larger.reserved_gb;
  plan.would_help.push_back(fmt::format("devices with {:.0f} GB", larger.memory_gb + 0.5));
  return plan;
}

}  // namespace flywheel::train
