// The planner's state and its quick estimate, which the search calls for every mesh in turn.
#pragma once

#include <map>
#include <tuple>

#include "train/plan_internal.h"

namespace flywheel::train {

struct Estimate {
  double memory_bytes = 0, step_seconds = 0;
  bool fits = false;
};

struct Planner::State {
  State(Job the_job, MachineSpec the_machine) : job(std::move(the_job)), machine(std::move(the_machine)) {}
  const Stages& stages_of(const PlanMesh& mesh);
  // By formulas; does not play the schedule.
  Estimate estimate(const PlanMesh& mesh);

  Job job;
  MachineSpec machine;
  std::map<std::tuple<int64_t, int, bool>, Stages> stages;  // by pipeline, chunks, V
};

}  // namespace flywheel::train
