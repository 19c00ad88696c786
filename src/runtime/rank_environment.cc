#include "runtime/rank_environment.h"

#include <charconv>
#include <vector>

#include "base/env.h"

namespace flywheel::runtime {
namespace {

// One kind of starter. It is the one if `sign` is set; further names are tried in order.
struct Starter {
  const char* name;
  const char* sign;
  std::vector<const char*> rank, size, local_rank, local_size, job, address;
};

// In this order, because they nest: mpirun within a Slurm job leaves SLURM_PROCID at 0 for every rank, and
// torchrun may itself be what mpirun started.
const std::vector<Starter>& starters() {
  static const std::vector<Starter> all = {
      {"torchrun",
       "TORCHELASTIC_RUN_ID",
       {"RANK"},
       {"WORLD_SIZE"},
       {"LOCAL_RANK"},
       {"LOCAL_WORLD_SIZE"},
       {"TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"},
       {"MASTER_ADDR"}},
      {"Open MPI",
       "OMPI_COMM_WORLD_RANK",
       {"OMPI_COMM_WORLD_RANK"},
       {"OMPI_COMM_WORLD_SIZE"},
       {"OMPI_COMM_WORLD_LOCAL_RANK"},
       {"OMPI_COMM_WORLD_LOCAL_SIZE"},
       {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"},
       {}},
      {"MPI (PMI)",
       "PMI_RANK",
       {"PMI_RANK"},
       {"PMI_SIZE"},
       {"MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"},
       {"MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"},
       {"PMI_JOBID", "SLURM_JOB_ID", "SLURM_STEP_ID"},
       {}},
      {"MPI (PMIx)",
       "PMIX_RANK",
       {"PMIX_RANK"},
       {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "WORLD_SIZE"},
       {"SLURM_LOCALID", "LOCAL_RANK"},
       {},
       {"PMIX_NAMESPACE"},
       {"MASTER_ADDR"}},
      {"RANK and WORLD_SIZE",
       "RANK",
       {"RANK"},
       {"WORLD_SIZE"},
       {"LOCAL_RANK"},
       {"LOCAL_WORLD_SIZE"},
       {"MASTER_ADDR", "MASTER_PORT"},
       {"MASTER_ADDR"}},
      {"a Kubernetes Indexed Job",
       "JOB_COMPLETION_INDEX",
       {"JOB_COMPLETION_INDEX"},
       {"WORLD_SIZE"},
       {},
       {},
       {"MASTER_ADDR"},
       {"MASTER_ADDR"}},
      {"srun",
       "SLURM_PROCID",
       {"SLURM_PROCID"},
       {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"},
       {"SLURM_LOCALID"},
       {},
       {"SLURM_JOB_ID", "SLURM_STEP_ID"},
       {}},
  };
  return all;
}

// The first of them that is set.
struct Found {
  std::string name, value;
};
Found first_of(const Variables& variables, const std::vector<const char*>& names) {
  for (const char* name : names) {
    if (std::string value = variables(name); !value.empty()) return {name, std::move(value)};
  }
  return {};
}

Result<int> number(const Found& found) {
  int value = -1;
  const char* end = found.value.data() + found.value.size();
  const auto [at, error] = std::from_chars(found.value.data(), end, value);
  if (error == std::errc() && at == end && value >= 0) return value;
  return make_error(ErrorCode::kInvalid, "{}={} is not a number of 0 or more", found.name, found.value);
}

}  // namespace

Result<RankEnvironment> read_rank_environment(const Variables& variables) {
  for (const Starter& starter : starters()) {
    if (variables(starter.sign).empty()) continue;
    RankEnvironment ranks{.source = starter.name};
    const Found rank = first_of(variables, starter.rank), size = first_of(variables, starter.size);
    if (rank.name.empty() || size.name.empty()) {
      return make_error(ErrorCode::kInvalid, "{} is set, but {} is not: which of how many ranks is this?",
                        starter.sign, rank.name.empty() ? starter.rank[0] : starter.size[0]);
    }
    ASSIGN_OR_RETURN(ranks.rank, number(rank));
    ASSIGN_OR_RETURN(ranks.size, number(size));
    if (ranks.rank >= ranks.size) {
      return make_error(ErrorCode::kInvalid, "{}={} is not below {}={}", rank.name, rank.value, size.name,
                        size.value);
    }
    if (const Found local = first_of(variables, starter.local_rank); !local.name.empty()) {
      ASSIGN_OR_RETURN(ranks.local_rank, number(local));
    }
    if (const Found local = first_of(variables, starter.local_size); !local.name.empty()) {
      ASSIGN_OR_RETURN(ranks.local_size, number(local));
    }
    for (const char* name : starter.job) {  // together they tell jobs apart
      if (const std::string part = variables(name); !part.empty()) ranks.job += "/" + part;
    }
    ranks.address = first_of(variables, starter.address).value;
    return ranks;
  }
  return make_error(ErrorCode::kNotFound,
                    "nothing says which rank this process is: no variable of mpirun, torchrun, srun or a "
                    "Kubernetes Indexed Job is set, nor are RANK and WORLD_SIZE");
}

Result<RankEnvironment> read_rank_environment() {
  return read_rank_environment([](const char* name) { return env::get(name); });
}

}  // namespace flywheel::runtime
