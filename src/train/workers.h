// The workers of a training run: a mesh of processes, each with its part of the trainer (operations.h).
//
// Here a config becomes axes of a mesh, threads of each worker, and how often the mesh takes snapshots. How a
// worker uses its axes is the trainer's matter; how it is started and recovered, the runtime's.
//
// Ownership: owns the controller and so the processes. Threads: one, as runtime/controller.h says.
//
//   ASSIGN_OR_RETURN(Workers workers, Workers::open(config, layout, {.folder = folder, .run =
//   "tiny-7"})); RETURN_IF_ERROR(workers.create(config, inputs, "").wait()); Future step =
//   workers.all().call(kStep, "", {.want_value = true, .cursor = 0});
//   RETURN_IF_ERROR(workers.controller().close());
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "runtime/controller.h"
#include "train/config.h"
#include "train/hosts.h"
#include "train/inputs.h"
#include "train/layout.h"

namespace flywheel::train {

// Whether a call that is done failed because a worker's disk was full: it has happened nowhere, and may be
// called again when there is room. One that an earlier controller ended with is answered so by the log for
// ever.
bool lacked_room(const runtime::Future& call);

struct WorkersOptions {
  std::string folder;  // of the run
  std::string run;
  std::vector<std::string> command;   // starts a worker
  int64_t snapshot_interval_ms = -1;  // -1: what the config says
  runtime::Cluster cluster;           // where they run; no hosts: here
  std::function<bool()> cancelled;    // runtime::MeshOptions
};

class Workers {
 public:
  static Result<Workers> open(const TrainConfig& config, const Layout& layout, const WorkersOptions& options);

  // Gives every worker its trainer: new, from a model (inputs), or from `state`, a trainer.state.
  runtime::Future create(const TrainConfig& config, const Inputs& inputs, const std::string& state) const;

  // Another mesh for the same run, when the one before is closed (config.elastic): without the hosts of which
  // no worker came up, or on all of them where the config's mesh is whole again. It may be closed already.
  Result<void> reopen(const TrainConfig& config, const Layout& layout);
  // How many of so many more workers can be had now: they are started, and end. A closed mesh of the log
  // answers for an earlier controller.
  Result<int64_t> probe(int64_t wanted);

  runtime::Controller& controller() { return *controller_; }
  const runtime::Mesh& all() const { return mesh_; }
  const runtime::Mesh& first() const { return first_; }  // rank 0 alone: writes checkpoints

 private:
  Workers() = default;
  Result<void> open_mesh(const TrainConfig& config, const Layout& layout);
  std::function<bool()> cancelled_;
  std::vector<std::string> needs_;
  runtime::Cluster cluster_;
  std::vector<runtime::Host> hosts_;  // of the mesh
  int64_t whole_ = 1;                 // workers of the config's mesh
  int meshes_ = 0, probes_ = 0;       // opened so far
  int64_t cores_each_ = 1;            // for each worker's threads
  std::unique_ptr<runtime::Controller> controller_;
  runtime::Mesh mesh_, first_;
};

// The least time between two snapshots in memory that Young's formula may choose, as long as the first one
// has not shown what they cost: larger models make them less often.
int64_t snapshot_interval_ms(int64_t parameters);

}  // namespace flywheel::train
