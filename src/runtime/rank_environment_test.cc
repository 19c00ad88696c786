#include "runtime/rank_environment.h"

#include <gtest/gtest.h>

#include <map>

namespace flywheel::runtime {
namespace {

using Set = std::map<std::string, std::string>;

Result<RankEnvironment> read(const Set& set) {
  return read_rank_environment([&](const char* name) {
    const auto found = set.find(name);
    return found == set.end() ? std::string() : found->second;
  });
}

// As the real ones set them; tests/launch starts the real ones.
const Set kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "2"},
                      {"OMPI_COMM_WORLD_SIZE", "4"},
                      {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                      {"PMIX_RANK", "2"},
                      {"PMIX_NAMESPACE", "955973633"}};
const Set kHydra = {{"PMI_RANK", "3"}, {"PMI_SIZE", "5"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "5"}};
const Set kTorchrun = {{"RANK", "1"},
                       {"WORLD_SIZE", "2"},
                       {"LOCAL_RANK", "1"},
                       {"LOCAL_WORLD_SIZE", "2"},
                       {"MASTER_ADDR", "node7"},
                       {"MASTER_PORT", "29500"},
                       {"TORCHELASTIC_RUN_ID", "none"}};
const Set kSrun = {{"SLURM_PROCID", "0"},         {"SLURM_NTASKS", "2"}, {"SLURM_LOCALID", "0"},
                   {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_JOB_ID", "7"}, {"SLURM_STEP_ID", "3"}};

TEST(RankEnvironment, OpenMpi) {
  const RankEnvironment ranks = read(kOpenMpi).value();
  EXPECT_EQ(ranks.source, "Open MPI");
  EXPECT_EQ(ranks.rank, 2);
  EXPECT_EQ(ranks.size, 4);
  EXPECT_EQ(ranks.local_rank, 0);
  EXPECT_FALSE(ranks.one_host());
  EXPECT_EQ(ranks.job, "/955973633");
}

TEST(RankEnvironment, HydraOnOneHost) {
  const RankEnvironment ranks = read(kHydra).value();
  EXPECT_EQ(ranks.rank, 3);
  EXPECT_EQ(ranks.size, 5);
  EXPECT_TRUE(ranks.one_host());
  EXPECT_EQ(ranks.job, "");
}

TEST(RankEnvironment, Torchrun) {
  const RankEnvironment ranks = read(kTorchrun).value();
  EXPECT_EQ(ranks.source, "torchrun");
  EXPECT_EQ(ranks.rank, 1);
  EXPECT_EQ(ranks.address, "node7");
  EXPECT_EQ(ranks.job, "/none/node7/29500");
}

TEST(RankEnvironment, RankAndWorldSizeByHand) {
  const RankEnvironment ranks = read({{"RANK", "0"}, {"WORLD_SIZE", "3"}}).value();
  EXPECT_EQ(ranks.size, 3);
  EXPECT_EQ(ranks.local_size, -1);
}

TEST(RankEnvironment, KubernetesIndexedJob) {
  const RankEnvironment ranks =
      read({{"JOB_COMPLETION_INDEX", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "tiny-0.tiny"}}).value();
  EXPECT_EQ(ranks.rank, 1);
  EXPECT_EQ(ranks.address, "tiny-0.tiny");
}

TEST(RankEnvironment, SlurmsPmixHasItsSizeFromSlurm) {
  Set set = kSrun;
  set["PMIX_RANK"] = "1", set["PMIX_NAMESPACE"] = "slurm.pmix.7.3";
  const RankEnvironment ranks = read(set).value();
  EXPECT_EQ(ranks.source, "MPI (PMIx)");
  EXPECT_EQ(ranks.rank, 1);
  EXPECT_EQ(ranks.size, 2);
}

// mpirun inside a Slurm job leaves SLURM_PROCID at 0 for all.
TEST(RankEnvironment, MpirunInsideASlurmJobIsMpirun) {
  Set set = kOpenMpi;
  set.insert(kSrun.begin(), kSrun.end());
  EXPECT_EQ(read(set)->rank, 2);
  EXPECT_EQ(read(kSrun)->source, "srun");
}

TEST(RankEnvironment, NothingSet) {
  EXPECT_EQ(read({}).error().code, ErrorCode::kNotFound);
}

TEST(RankEnvironment, NumbersThatMakeNoSenseAreNamed) {
  const auto message = [](const Set& set) { return read(set).error().message; };
  EXPECT_EQ(message({{"RANK", "one"}, {"WORLD_SIZE", "2"}}), "RANK=one is not a number of 0 or more");
  EXPECT_EQ(message({{"RANK", "-1"}, {"WORLD_SIZE", "2"}}), "RANK=-1 is not a number of 0 or more");
  EXPECT_EQ(message({{"RANK", "2"}, {"WORLD_SIZE", "2"}}), "RANK=2 is not below WORLD_SIZE=2");
  EXPECT_EQ(message({{"RANK", "0"}}), "RANK is set, but WORLD_SIZE is not: which of how many ranks is this?");
  EXPECT_EQ(message({{"PMI_RANK", "99999999999"}, {"PMI_SIZE", "2"}}),
            "PMI_RANK=99999999999 is not a number of 0 or more");
}

}  // namespace
}  // namespace flywheel::runtime
