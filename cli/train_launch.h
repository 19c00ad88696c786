// `flywheel train --on WHERE`: from flags, config and environment to the cluster that a run's workers run on.
// docs/launch.md.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runtime/cluster.h"
#include "train/config.h"

namespace flywheel::cli {

struct LaunchFlags {
  std::string on;       // empty: as config.mesh says
  std::string hosts;    // ssh
  std::string options;  // words for ssh or salloc
  int64_t wait_seconds = 300;
  std::string write, image, claim;  // k8s
  std::string dashboard;            // ray
};

void add_launch_flags(CLI::App& app, LaunchFlags& flags);

// Either the run goes on in this process, with a cluster or as the config says; or this process had another
// part (it was a rank that works for another, it waited for Slurm's), which is over with this exit code.
struct Launched {
  std::optional<runtime::Cluster> cluster;
  std::optional<int> exit_code;
};

// `args`: those of this verb, for a process that does the same elsewhere. UserError for what is asked for and
// cannot be.
Launched launch(const LaunchFlags& flags, const std::vector<std::string>& args,
                const train::TrainConfig& config);

}  // namespace flywheel::cli
