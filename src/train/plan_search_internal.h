// The planner's state, its quick estimate, and the search that calls it for every mesh in turn.
//
//   plan_search.cc    the meshes of a world, and what each product of axes can do
//   plan_reasons.cc   why a mesh was chosen, in sentences
//   plan_advice.cc    what would make a job fit that does not
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <tuple>

#include "train/plan_internal.h"

namespace flywheel::train {

struct Estimate {
  double memory_bytes = 0, step_seconds = 0;
  bool fits = false;
};

struct Planner::State {
  State(Job the_job, MachineSpec the_machine)
      : job(std::move(the_job)),
        machine(std::move(the_machine)),
        candidate(job.config),
        rules(job.config, job.decoder) {}
  Result<void> can_run(const PlanMesh& mesh);
  const ModelCost& model_of(int64_t tensor, bool sequence_parallel);  // a tensor rank's part
  const Stages& stages_of(const PlanMesh& mesh);
  // By formulas; does not play the schedule.
  Estimate estimate(const PlanMesh& mesh);
  Recompute least_recompute(PlanMesh mesh);
  // That this model has.
  std::vector<Recomputed> operations() const;
  // None, then one operation more each time, the one that saves a byte for the least time first, and full:
  // what a search goes through, where least_recompute() would take too long.
  const std::vector<Recompute>& recompute_steps();

  Job job;
  MachineSpec machine;
  TrainConfig candidate;  // the job's, with the mesh that was asked about last
  MeshRules rules;
  std::vector<Recompute> steps_of_recompute;
  std::map<std::pair<int64_t, bool>, ModelCost> models;
  std::map<std::tuple<int64_t, int, bool, int64_t, bool>, Stages>
      stages;  // pipeline, chunks, V, tensor, its rows
};

struct Candidate {
  PlanMesh mesh;
  Estimate estimate;
  double score = 0;  // less is better: seconds, and a little for each thing that can go wrong
};
double score_of(double seconds, const PlanMesh& mesh);

// What one product of axes can do: the best that fits, and the one that needs the least memory.
struct AxesResult {
  std::optional<Candidate> best;
  Candidate least;
  int64_t considered = 0;
};
// Recomputation is not tried where a mesh without it has a score of `good_enough` or more: with it, it has a
// worse one.
AxesResult search_axes(Planner::State& state, const PlanMesh& axes,
                       double good_enough = std::numeric_limits<double>::infinity());

// Calls visit for every product of axes of this world that may run, until it says false.
void for_axes(const Planner::State& state, int64_t world, const std::function<bool(const PlanMesh&)>& visit);

// The norms and the stream are cut wherever the tensor axis allows it: less memory and no more traffic.
bool cuts_stream(const Job& job, const PlanMesh& mesh);
std::vector<int64_t> divisors(int64_t n);  // ascending

// Of the first: against its neighbours, each tried out. Of the others: against the first.
std::vector<std::string> reasons_for(Planner::State& state, const Prediction& first);
std::vector<std::string> reasons_beside(const Prediction& other, const Prediction& first);

// Why there is no mesh, and what would help. `least`: the one that needs the least memory; none where no mesh
// divides the job.
void refuse(Planner::State& state, int64_t world, const std::optional<Candidate>& least, Plan& plan);

}  // namespace flywheel::train
