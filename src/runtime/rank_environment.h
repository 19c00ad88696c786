// Which of several processes this one is, as said by whatever started them: the variables of mpirun (Open
// MPI, MPICH and what is derived from it, PMIx), torchrun, a Kubernetes Indexed Job and srun. docs/launch.md
// has the table.
//
// Threads: any. Errors: kNotFound when nothing of the kind is set, kInvalid (naming the variable) for numbers
// that make no sense.
//
//   ASSIGN_OR_RETURN(const RankEnvironment ranks, read_rank_environment());
//   if (ranks.rank == 0) ...
#pragma once

#include <functional>
#include <string>

#include "base/result.h"

namespace flywheel::runtime {

struct RankEnvironment {
  std::string source;  // "Open MPI", "torchrun", for messages
  int rank = 0, size = 1;
  int local_rank = -1, local_size = -1;  // on this host; -1: not said
  std::string job;      // equal on all ranks, and seldom on those of another job; empty: not said
  std::string address;  // at which the others reach rank 0: a name or IPv4; empty: not said
  bool one_host() const { return local_size == size; }
};

using Variables = std::function<std::string(const char* name)>;  // empty: not set
Result<RankEnvironment> read_rank_environment(const Variables& variables);
Result<RankEnvironment> read_rank_environment();  // of this process

}  // namespace flywheel::runtime
