// Where a mesh's workers run, and how they are started there, as one value: what `--on ssh|slurm|mpi|ray`
// turns into. docs/launch.md.
//
// Ownership: `launcher` and `end` share what they need. Errors: of the functions that make one: kNotFound for
// a program or scheduler that is not there (with what to install), kUnavailable when it refuses, kDeadline,
// kInvalid.
//
//   ASSIGN_OR_RETURN(Cluster cluster, ssh_cluster({.hosts = {"node7", "node8"}, .workers = 4}));
//   controller.launcher = cluster.launcher({.log_folder = folder});
//   controller->mesh("train", axes, {.hosts = cluster.hosts});
//   ...
//   cluster.end(0);
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "runtime/launcher.h"

namespace flywheel::runtime {

struct Cluster {
  std::vector<Host> hosts;  // of rank 0, 1, ...
  std::string address;      // of this machine, for them
  int port = 0;             // there: this one and the next two; 0: any free ones
  int64_t cores = 0;        // for each worker; 0: not known
  std::function<std::unique_ptr<Launcher>(const LocalLauncherOptions&)> launcher;
  std::function<void(int exit_code)> end = [](int) {};  // tells those who wait that it is over
};

// --- hosts that are reached by ssh, without asking for a password ---------------------------------

struct SshOptions {
  std::vector<std::string> hosts;    // as ssh knows them; each may be there once
  std::vector<std::string> options;  // words for ssh: -p 2222
  int workers = 1;
  std::string address;  // of this machine; empty: the one that faces the first host
};
Result<Cluster> ssh_cluster(const SshOptions& options);

// --- Slurm: from within a job (sbatch, salloc) -----------------------------------------------------

struct SlurmOptions {
  int workers = 1;
  std::string address;  // of this machine; empty: the one that faces the first node
  std::string job;      // SLURM_JOB_ID
};
Result<Cluster> slurm_cluster(const SlurmOptions& options);
// The command that asks for a job and runs `command` with it; `options` are words for salloc.
Result<std::vector<std::string>> salloc_command(const std::vector<std::string>& options, int workers,
                                                int64_t threads, const std::string& name,
                                                const std::vector<std::string>& command);
// "2(x2),1" -> 2, 2, 1: SLURM_TASKS_PER_NODE and SLURM_JOB_CPUS_PER_NODE.
Result<std::vector<int>> parse_slurm_counts(const std::string& text);

// Ranks 0, 1, ... dealt to so many places in blocks; which place each gets.
std::vector<int> deal(int workers, int places);

}  // namespace flywheel::runtime
