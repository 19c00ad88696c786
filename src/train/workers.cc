#include "train/workers.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "base/check.h"
#include "base/cpu.h"
#include "base/deadline.h"
#include "train/operations.h"

namespace flywheel::train {

using runtime::Controller;

namespace {

constexpr int64_t kProbeMs = 5'000;  // for spare workers to come up

}  // namespace

bool lacked_room(const runtime::Future& call) {
  return std::ranges::any_of(call.failures(), [](const Error& e) { return e.code == ErrorCode::kFull; });
}

int64_t snapshot_interval_ms(int64_t parameters) {
  const int64_t state_bytes = parameters * 12;  // weights and two moments
  return 1000 + state_bytes / 20'000;
}

Result<Workers> Workers::open(const TrainConfig& config, const Layout& layout,
                              const WorkersOptions& options) {
  runtime::ControllerOptions own{.folder = options.folder, .run = options.run, .seed = config.seed};
  const SnapshotsConfig& snapshots = config.snapshots;
  if (options.snapshot_interval_ms >= 0) {
    own.watermark_interval_ms = options.snapshot_interval_ms;
  } else if (snapshots.interval_s > 0) {
    own.watermark_interval_ms = std::max<int64_t>(1, std::llround(snapshots.interval_s * 1000));
  } else {
    own.watermark_interval_ms =
        snapshot_interval_ms(layout.decoder.num_parameters() / std::ssize(layout.holders()));
    own.young_interval = true;
  }
  own.worker_mtbf_hours = snapshots.mtbf_hours;
  own.heartbeat_timeout_ms = std::llround(config.heartbeat_timeout_s * 1000);
  // Both ends of a connection that stalls are as patient.
  own.lease_ms = std::max(own.lease_ms, own.heartbeat_timeout_ms);
  // Every step counts. A step that workers do not survive would have that for its result, and the log would
  // keep it; so it ends the mesh instead, after more losses in a row, and the run can be gone on with.
  own.max_recoveries_per_command = std::numeric_limits<int>::max();
  own.durable_interval_ms = std::max<int64_t>(30'000, 4 * own.watermark_interval_ms);
  if (snapshots.disk_s > 0)
    own.durable_interval_ms = std::max<int64_t>(1, std::llround(snapshots.disk_s * 1000));
  const runtime::LocalLauncherOptions local{.command = options.command,
                                            .log_folder = options.folder + "/workers"};
  const runtime::Cluster& cluster = options.cluster;
  own.launcher = cluster.launcher ? cluster.launcher(local) : runtime::make_local_launcher(local);
  own.address = cluster.address;
  own.port = cluster.port;
  Workers workers;
  workers.cluster_ = cluster;
  workers.hosts_ = cluster.hosts;
  workers.whole_ = config.mesh.workers();
  workers.cancelled_ = options.cancelled;
  if (config.device != DeviceChoice::kGpu)
    workers.needs_ = {kLibtorch};  // whose autograd a device does without
  ASSIGN_OR_RETURN(workers.controller_, Controller::open(std::move(own)));
  RETURN_IF_ERROR(workers.open_mesh(config, layout));
  return workers;
}

Result<void> Workers::open_mesh(const TrainConfig& config, const Layout& layout) {
  // Other machines are taken to be like this one, unless it is known what they give.
  runtime::Cluster used;
  used.hosts = hosts_;
  const int64_t machines = count_machines(used), share = (config.mesh.workers() + machines - 1) / machines;
  cores_each_ = cluster_.cores > 0 ? cluster_.cores : std::max<int64_t>(1, usable_cores() / share);
  const bool first = ++meshes_ == 1;
  const int64_t wait_ms = config.elastic.on() ? std::llround(config.elastic.wait_s * 1000) : 0;
  ASSIGN_OR_RETURN(mesh_,
                   controller_->mesh(first ? "train" : fmt::format("train-{}", meshes_), layout.shape.axes(),
                                     {.hosts = hosts_,
                                      .needs = needs_,
                                      .cancelled = cancelled_,
                                      .replace_ms = wait_ms,
                                      .may_lack_workers = !first || controller_->resumed()}));
  std::map<std::string, int> at_0;
  for (const runtime::Axis& axis : layout.shape.axes()) at_0[axis.name] = 0;
  ASSIGN_OR_RETURN(first_, mesh_.slice(at_0));
  return {};
}

Result<void> Workers::reopen(const TrainConfig& config, const Layout& layout) {
  const auto closed = mesh_.closed();
  CHECK(closed.has_value(), "the mesh before is still there");
  const auto hosts = std::ssize(hosts_), ranks = static_cast<std::ptrdiff_t>(mesh_.shape().size());
  std::vector<runtime::Host> left;
  for (std::ptrdiff_t h = 0; h < hosts; ++h) {
    bool gone = true;  // dealt as runtime/controller.cc deals
    for (std::ptrdiff_t rank = 0; rank < ranks; ++rank) {
      if (rank * hosts / ranks == h && std::ranges::find(closed->missing, rank) == closed->missing.end())
        gone = false;
    }
    if (!gone) left.push_back(hosts_[static_cast<size_t>(h)]);
  }
  if (!left.empty()) hosts_ = std::move(left);
  if (config.mesh.workers() == whole_) hosts_ = cluster_.hosts;
  return open_mesh(config, layout);
}

Result<int64_t> Workers::probe(int64_t wanted) {
  std::vector<runtime::Host> hosts;  // those that are out of use; else the mesh's own
  for (const runtime::Host& host : cluster_.hosts) {
    const bool used = std::ranges::any_of(hosts_, [&](const runtime::Host& other) {
      return other.name == host.name && other.seat == host.seat;
    });
    if (!used) hosts.push_back(host);
  }
  if (hosts.empty()) hosts = hosts_;
  if (std::ssize(hosts) > wanted) hosts.resize(static_cast<size_t>(wanted));
  ASSIGN_OR_RETURN(const runtime::Mesh spare, controller_->mesh(fmt::format("spare-{}", ++probes_),
                                                                {{"spare", static_cast<int>(wanted)}},
                                                                {.hosts = std::move(hosts),
                                                                 .needs = needs_,
                                                                 .replace_ms = kProbeMs,
                                                                 .starting_ms = 0,
                                                                 .may_lack_workers = true}));
  RETURN_IF_ERROR(spare.close("it was tried whether there are workers", Deadline::after_ms(60'000)));
  const auto closed = spare.closed();
  CHECK(closed.has_value(), "a mesh that was closed is not");
  return wanted - std::ssize(closed->missing);
}

runtime::Future Workers::create(const TrainConfig& config, const Inputs& inputs,
                                const std::string& state) const {
  const TrainSetup setup{.config = dump_config(config),
                         .decoder = model::decoder_config_to_hf(inputs.decoder, "float32").dump(),
                         .data = inputs.data.folder,
                         .validation = inputs.validation.folder,
                         .tokenizer = inputs.tokenizer.folder,
                         .weights = inputs.model.folder,
                         .state = state,
                         .threads = config.mesh.threads > 0 ? config.mesh.threads : cores_each_};
  return mesh_.call(kCreate, setup.to_json());
}

}  // namespace flywheel::train
