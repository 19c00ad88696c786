// `--on WHERE`: from flags, config and environment to the cluster that a run's workers run on.
// docs/launch.md.
//
//   LaunchFlags flags;
//   add_launch_flags(app, flags);
//   ... parse ...
//   Launched launched = launch(flags, {.verb = "train", .args = args, .name = config.name, .workers = 4,
//   ...}); if (launched.exit_code) return *launched.exit_code;
//   ... run on launched.cluster, if there is one ...
//   launched.end(exit_code);
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/cluster.h"

namespace flywheel::cli {

struct LaunchFlags {
  std::string on;                       // empty: as config.mesh says
  std::string hosts;                    // ssh
  std::string options;                  // words for ssh or salloc
  std::optional<int64_t> wait_seconds;  // mpi, k8s, ray
  std::string write, image, claim;      // k8s
  std::string dashboard;                // ray
};

void add_launch_flags(CLI::App& app, LaunchFlags& flags);

// What is to be launched.
struct LaunchJob {
  std::string verb;               // of this program
  std::vector<std::string> args;  // of the verb: for a process that does the same elsewhere
  std::string name;               // of the run, and of what a scheduler makes for it
  int workers = 1;
  int64_t threads = 0;                          // of each; 0: not said
  std::string address;                          // of this machine, as the config has it; empty: not said
  int port = 0;                                 // there, for workers; 0: any
  bool names_hosts = false;                     // the config does
  std::string config;                           // resolved, as YAML
  std::vector<std::string> beside_config = {};  // flags that were given and that --write cannot take along
  std::function<int()> stop_signal = [] { return 0; };  // that asks for the run's end; 0: none
};

// Either the run goes on in this process, with a cluster or as the config says; or this process had another
// part (it was a rank that works for another, it wrote a manifest), which is over with this exit code.
struct Launched {
  std::optional<runtime::Cluster> cluster;
  std::optional<int> exit_code;
  // The run has ended so: other ranks do too. Gives the code back.
  int end(int code) const {
    if (cluster) cluster->end(code);
    return code;
  }
};

// UserError for what is asked for and cannot be.
Launched launch(const LaunchFlags& flags, const LaunchJob& job);

}  // namespace flywheel::cli
