// The best meshes for a world: every product of axes that the model, the batch and the world allow.
//
// Axes must divide the world, and each must divide something of the model (heads, blocks) or of the batch,
// which leaves few: a world of a million has some hundreds. For each, every ZeRO stage, schedule, micro-batch
// and recomputation that the trainer accepts is estimated by formula; the fastest that fits stands for its
// axes, and the best of those are predicted exactly.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "train/plan_search_internal.h"

namespace flywheel::train {
namespace {

constexpr int64_t kLargestMicro = 64;  // sequences; more never fill a device better
// Tokens of a context rank's piece: attention within less is over before the next keys have come over a
// network (Liu et al. 2023 ask for 1,000 within a host to 24,500 between hosts).
constexpr int64_t kLeastPiece = 4096;
// A mesh is preferred to one that is this much faster but has one thing more to it.
constexpr double kSimplicity = 0.004;

double complexity(const PlanMesh& mesh) {
  double things = 0;
  things += mesh.tensor > 1, things += mesh.context > 1, things += mesh.pipeline > 1,
      things += mesh.expert > 1;
  things += mesh.zero >= 2, things += mesh.zero >= 3, things += mesh.zero_group > 0;
  things += mesh.recompute != Recompute::kNone;
  things += mesh.pipeline > 1 && mesh.schedule != ScheduleKind::kOneForwardOneBackward;
  return things;
}

bool cuts_sequences(const Job& job, int64_t context) {
  return context == 1 ||
         (job.model.length % (2 * context) == 0 && job.model.length / (2 * context) >= kLeastPiece);
}

// ZeRO's stages over all of the data axis and over the replicas of one host.
std::vector<PlanMesh> sharings(Planner::State& state, PlanMesh mesh) {
  std::vector<PlanMesh> all;
  const int64_t inner = mesh.tensor * mesh.context;
  const int64_t in_host = within_hosts(state.machine, inner) ? state.machine.devices_per_host / inner : 0;
  for (const int64_t group : {int64_t{0}, in_host}) {
    const bool splits = group > 1 && group < mesh.data && mesh.data % group == 0 && mesh.expert == 1;
    if (group > 0 && !splits) continue;
    mesh.zero_group = group;
    const bool shares = mesh.data * mesh.expert * mesh.context > 1;
    const int most = shares || state.job.config.offload.in_files() ? 3 : 0;
    for (mesh.zero = group > 0 ? 1 : 0; mesh.zero <= most; ++mesh.zero) {
      if (state.can_run(mesh).ok()) all.push_back(mesh);
    }
  }
  return all;
}

// The ways to work through a replica's share of the batch: micro-batches, and in a pipeline schedules.
std::vector<PlanMesh> orders(const Job& job, PlanMesh mesh) {
  std::vector<PlanMesh> all;
  const int64_t replicas = mesh.data * mesh.expert;
  for (const int64_t micro : divisors((job.sequences() + replicas - 1) / replicas)) {
    if (micro > kLargestMicro) break;
    mesh.micro_sequences = micro;
    if (mesh.pipeline == 1) {
      all.push_back(mesh);
      continue;
    }
    for (const auto& [kind, chunks] :
         std::initializer_list<std::pair<ScheduleKind, int>>{{ScheduleKind::kOneForwardOneBackward, 1},
                                                             {ScheduleKind::kInterleaved, 2},
                                                             {ScheduleKind::kInterleaved, 4},
                                                             {ScheduleKind::kZeroBubbleH1, 1},
                                                             {ScheduleKind::kZeroBubbleV, 2}}) {
      mesh.schedule = kind, mesh.chunks = chunks;
      all.push_back(mesh);
    }
  }
  return all;
}

}  // namespace

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

double score_of(double seconds, const PlanMesh& mesh) {
  return seconds * (1 + kSimplicity * complexity(mesh));
}

bool cuts_stream(const Job& job, const PlanMesh& mesh) {
  return mesh.tensor > 1 && job.model.length / mesh.context % mesh.tensor == 0;
}

void for_axes(const Planner::State& state, int64_t world, const std::function<bool(const PlanMesh&)>& visit) {
  const Job& job = state.job;
  const auto blocks = static_cast<int64_t>(job.model.blocks.size());
  for (const int64_t tensor : divisors(world)) {
    if (tensor > state.machine.devices_per_host || job.model.heads % tensor != 0) continue;
    for (const int64_t pipeline : divisors(world / tensor)) {
      if (pipeline > blocks) break;
      for (const int64_t context : divisors(world / tensor / pipeline)) {
        if (!cuts_sequences(job, context)) continue;
        const int64_t replicas = world / tensor / pipeline / context;
        if (replicas > job.sequences() || (pipeline > 1 && job.sequences() % replicas != 0)) continue;
        for (const int64_t expert : divisors(replicas)) {
          if (expert > 1 && (job.model.experts.count == 0 || job.model.experts.count % expert != 0)) continue;
          PlanMesh mesh{.data = replicas / expert,
                        .expert = expert,
                        .context = context,
                        .pipeline = pipeline,
                        .tensor = tensor};
          mesh.sequence_parallel = cuts_stream(job, mesh);
          if (!visit(mesh)) return;
        }
      }
    }
  }
}

AxesResult search_axes(Planner::State& state, const PlanMesh& axes, double good_enough) {
  AxesResult result;
  result.least.estimate.memory_bytes = std::numeric_limits<double>::infinity();
  const auto consider = [&](const PlanMesh& mesh) {
    ++result.considered;
    const Estimate e = state.estimate(mesh);
    const Candidate candidate{mesh, e, score_of(e.step_seconds, mesh)};
    if (e.memory_bytes < result.least.estimate.memory_bytes) result.least = candidate;
    if (e.fits && (!result.best || candidate.score < result.best->score)) result.best = candidate;
    return candidate;
  };
  const std::vector<Recompute>& steps = state.recompute_steps();  // none, ever more, all, full
  for (const PlanMesh& order : orders(state.job, axes)) {
    // Once one fits, what only saves more memory is no faster: more recomputation, or in the same group ZeRO
    // beyond 1 (whose sharded update may be).
    bool enough = false, group_fits = false;
    int64_t group = -1;
    std::vector<Candidate> too_large;
    for (PlanMesh mesh : sharings(state, order)) {
      if (mesh.zero_group != group) group_fits = false, group = mesh.zero_group;
      if (group_fits && mesh.zero > 1) continue;
      mesh.recompute = Recompute::kNone;
      const Candidate candidate = consider(mesh);
      const bool fits = candidate.estimate.fits;
      group_fits |= fits, enough |= fits && mesh.zero <= 1;
      if (!fits) too_large.push_back(candidate);
    }
    if (enough) continue;
    for (const Candidate& candidate : too_large) {
      // It is slower with recomputation than without.
      if (candidate.score >= std::min(good_enough, result.best ? result.best->score : good_enough)) continue;
      const auto fits_with = [&](Recompute recompute) {
        PlanMesh mesh = candidate.mesh;
        mesh.recompute = recompute;
        return consider(mesh).estimate.fits;
      };
      const size_t all = steps.size() - 2;
      if (!fits_with(steps[all])) {
        fits_with(steps.back());  // slower still
        continue;
      }
      // The more, the slower: the first that fits.
      for (size_t first = 1, end = all; first < end;) {
        const size_t middle = first + (end - first) / 2;
        if (fits_with(steps[middle])) {
          end = middle;
        } else {
          first = middle + 1;
        }
      }
    }
  }
  return result;
}

Plan Planner::best(int64_t world, int count) {
  if (world < 1 || world > kMostWorkers)
    throw UserError("--world", fmt::format("{} workers; from 1 to {} are possible", world, kMostWorkers));
  Plan plan;
  const auto looked_at = static_cast<size_t>(4 * count);
  std::vector<Candidate> found;  // the best of axes, as many as are looked at more closely; best first
  double good_enough = std::numeric_limits<double>::infinity();  // to be among them
  std::optional<Candidate> least;
  for_axes(*state_, world, [&](const PlanMesh& axes) {
    const AxesResult result = search_axes(*state_, axes, good_enough);
    plan.considered += result.considered;
    if (result.best) {
      const auto worse = std::ranges::upper_bound(found, result.best->score, {}, &Candidate::score);
      found.insert(worse, *result.best);
      if (found.size() > looked_at) found.pop_back();
      if (found.size() == looked_at) good_enough = found.back().score;
    }
    if (result.considered > 0 &&
        (!least || result.least.estimate.memory_bytes < least->estimate.memory_bytes)) {
      least = result.least;
    }
    return true;
  });
  if (found.empty()) {
    refuse(*state_, world, least, plan);
    return plan;
  }
  for (const Candidate& candidate : found) {
    PlanMesh mesh = candidate.mesh;
    if (mesh.recompute != Recompute::kNone)
      mesh.recompute = least_recompute(mesh);  // of all sets, not of a few
    plan.best.push_back(predict(mesh));
  }
  std::ranges::stable_sort(plan.best, {},
                           [](const Prediction& p) { return score_of(p.step_seconds, p.mesh); });
  plan.best.resize(std::min(plan.best.size(), static_cast<size_t>(count)));
  for (Prediction& p : plan.best) {
    p.reasons = &p == &plan.best.front() ? reasons_for(*state_, p) : reasons_beside(p, plan.best.front());
    p.reasons.push_back(memory_by_recompute(p.mesh));
  }
  return plan;
}

}  // namespace flywheel::train
