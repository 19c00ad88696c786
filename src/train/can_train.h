// Whether the trainer can run a job: all that its config and its model decide, in one function. `flywheel
// train` asks before there is a run, `flywheel plan` before it foretells anything, and the planner's search
// before it considers a mesh.
//
// What a machine decides is asked where it is known: memory (plan_job.h), data (inputs.h), addresses and
// ports (hosts.h).
//
// Pure functions, any thread. Errors: kInvalid; the message begins with the key that is wrong.
//
//   can_train(config, describe(decoder_config)).value_or_throw();
#pragma once

#include <map>

#include "base/result.h"
#include "model/decoder.h"
#include "train/config.h"

namespace flywheel::train {

Result<void> can_train(const TrainConfig& config, const model::Decoder& decoder);

// The same for many meshes of one job, quickly: what depends on the size of the tensor axis alone is worked
// out once for each, and what no mesh changes once.
class MeshRules {
 public:
  // Of `config`, nothing of the mesh and the micro-batches is looked at but that they are numbers to compute
  // with.
  MeshRules(const TrainConfig& config, const model::Decoder& decoder);
  const Result<void>& of_job() const { return of_job_; }
  // A config that differs from the first in its mesh and batch.micro_sequences at most.
  Result<void> check(const TrainConfig& config);

 private:
  const model::Decoder& decoder_;
  Result<void> of_job_;
  std::map<int64_t, Result<void>> of_tensor_axis_;
};

}  // namespace flywheel::train
