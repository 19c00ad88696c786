// Losses: a mesh that lost workers, or in which a call failed, goes back to a watermark and on from there.
//
//   recover    a new epoch is logged, survivors are told to give up what they do, the lost are replaced
//   advance    when the epoch is durable and a worker is up, it is told where to get the state; when all
//              have it, the calls since the watermark are sent again (dispatch.cc) and their digests checked
//
// It may begin anew at any point: each time with a higher epoch, which is what makes everything that is still
// on its way from before harmless.
#include "base/file.h"
#include "runtime/controller_internal.h"

namespace flywheel::runtime {
namespace {

std::string own_piece(int rank) {
  return "rank-" + std::to_string(rank);
}

std::string place_name(const Host& host) {
  return host.seat < 0 ? host.name : fmt::format("{} (seat {})", host.name, host.seat);
}

const char* place_of(RestoredFrom from) {
  switch (from) {
    case RestoredFrom::kBeginning:
      return "the beginning";
    case RestoredFrom::kMemory:
      return "in memory";
    case RestoredFrom::kDisk:
      return "on disk";
  }
  return "?";
}

}  // namespace

void Core::recover(MeshState& mesh, const std::set<int>& lost, const std::string& reason) {
  static Counter& recoveries =
      Metrics::global().counter("flywheel_runtime_recoveries_total", "Meshes rolled back");
  if (mesh.phase == MeshState::Phase::kFailed || failed) return;
  const bool first = mesh.epoch_position == 0;
  if (first || mesh.phase == MeshState::Phase::kRunning) mesh.unready_since.restart();
  if (mesh.inquiry && (!mesh.inquiry->of_silence || !lost.empty())) conclude(mesh);
  mesh.inquiry.reset();
  mesh.asked_about = 0;
  mesh.suspect.reset();
  if (!first) {
    if (!lost.empty()) note_loss(mesh);  // a command that failed cost no worker
    recoveries.add(1);
    LOG_WARN("mesh {}: {}", mesh.name, reason);
    if (++mesh.fruitless > 20) {
      return fail_mesh(
          mesh, make_error(ErrorCode::kPeerLost, "{} recoveries in a row without a result; the last: {}",
                           mesh.fruitless, reason));
    }
  }
  // The oldest call without a result: what failed if something did, and under suspicion if a worker died.
  const bool running = mesh.phase == MeshState::Phase::kRunning;
  const size_t front = mesh.first_incomplete - mesh.tail_base;
  if (!first && running && mesh.first_incomplete < mesh.next_dispatch) {
    CallState& call = *mesh.tail[front];
    if (!call.error && ++call.kills > options.max_recoveries_per_command) {
      call.error =
          make_error(ErrorCode::kPeerLost, "command {} ({}) ended its workers {} times; the last: {}",
                     call.command.sequence, call.command.operation, call.kills, reason);
    }
    call.failed_for_good = call.error.has_value();
  }
  for (size_t i = front; i < mesh.tail.size(); ++i) {
    CallState& call = *mesh.tail[i];
    if (call.complete || call.failed_for_good) continue;
    const bool chance = call.command.kind == Kind::kNondeterministic;
    if (!chance) {  // it will be done again, from the same state
      std::fill(call.have.begin(), call.have.end(), 0);
      call.missing = call.have.size();
      call.error.reset();
      continue;
    }
    for (size_t j = 0; j < call.ranks.size(); ++j) {
      if (call.have[j] || !call.dispatched || !lost.contains(call.ranks[j])) continue;
      call.error = make_error(ErrorCode::kPeerLost,
                              "command {} ({}) may or may not have run on rank {}, which was lost; being "
                              "nondeterministic it is not run again",
                              call.command.sequence, call.command.operation, call.ranks[j]);
      call.failed_for_good = true;
    }
  }
  for (const int rank : lost) {
    const uint64_t gone = mesh.workers[static_cast<size_t>(rank)].id.incarnation;
    for (auto& [piece, who] : mesh.holders) who.erase(gone);
  }
  std::erase_if(meetings, [&](const auto& entry) { return entry.second.mesh == mesh.id; });
  mesh.making = 0;
  mesh.kept.clear();
  mesh.phase = MeshState::Phase::kRestoring;
  if (!choose_restore_point(mesh)) return;
  aim_catch_up(mesh);
  const auto logged = history.meshes.find(mesh.id);  // what an earlier controller left is computed again
  if (logged != history.meshes.end() && !mesh.ran && !mesh.catch_up)
    logged->second.done_again.go_back(history.after(mesh.id, mesh.restore_point));
  ++mesh.epoch;
  mesh.epoch_position =
      record(RecordType::kEpoch, EpochRecord{mesh.id, mesh.epoch, mesh.restore_point, reason});
  log->flush();
  const std::string fence = pack(MessageType::kFence, FenceMessage{mesh.epoch});
  for (auto& worker : mesh.workers) {
    if (lost.contains(worker.id.rank)) {
      start_worker(mesh, worker.id.rank);
    } else {
      worker.restored = worker.rollback_sent = false;
      worker.start_by = Deadline::after_ms(options.start_timeout_ms);
      (void)control.send_to(worker.identity, fence);
    }
  }
}

void Core::start_worker(MeshState& mesh, int rank) {
  WorkerState& worker = mesh.workers[static_cast<size_t>(rank)];
  processes_changed = true;
  worker.process.reset();  // killed, if it still runs or only hangs
  const bool came_up = worker.hello || worker.id.incarnation == 0;
  const int failed_starts = came_up ? 0 : worker.failed_starts + 1;
  const Host host = options.launcher->place(worker.host, failed_starts);
  if (host.name != worker.host.name || host.seat != worker.host.seat) {
    LOG_WARN("mesh {}: rank {} moves from {} to {}", mesh.name, rank, place_name(worker.host),
             place_name(host));
  }
  worker = WorkerState{};
  worker.host = host;
  worker.failed_starts = failed_starts;
  worker.id = WorkerId{mesh.id, rank, next_incarnation++};
  worker.identity = identity_of(worker.id);
  worker.start_by = Deadline::after_ms(options.start_timeout_ms);
  WorkerConfig config;
  config.line = lines->endpoints();
  config.control = control.endpoint;
  config.peer = host.address.empty() ? fmt::format("ipc://{}/peer-{}", sockets.path(), worker.id.incarnation)
                                     : fmt::format("tcp://{}:*", host.address);
  config.host = host.address.empty() ? "127.0.0.1" : host.address;
  config.id = worker.id;
  config.heartbeat_ms = options.heartbeat_ms;
  config.lease_ms = options.lease_ms;
  config.needs = mesh.options.needs;
  config.keys = transport->keys();
  WorkerSpec spec{fmt::format("{}/{}", mesh.name, rank), host, config.to_env()};
  spec.env.insert(mesh.options.env.begin(), mesh.options.env.end());
  auto started = options.launcher->start(spec);
  if (!started.ok() && mesh.may_lack())
    return start_later(mesh, worker, "cannot be started: " + started.error().message);
  if (!started.ok()) {
    return fail_mesh(mesh, make_error(started.error().code, "worker {} cannot be started: {}", spec.name,
                                      started.error().message));
  }
  worker.process = std::move(started).value();
}

void Core::note_loss(MeshState& mesh) {
  if (!mesh.catch_up) {
    Recovery recovery{.interval_seconds = interval_seconds(mesh), .young_seconds = young_seconds(mesh)};
    mesh.catch_up.emplace().recovery = std::move(recovery);
  }
  ++mesh.catch_up->losses;
}

// What of the calls that the program has seen is to be done again, from the restore point on.
void Core::aim_catch_up(MeshState& mesh) {
  if (!mesh.catch_up) return;
  MeshState::CatchUp& to = *mesh.catch_up;
  to.target = 0;
  to.recovery.done_again.clear();
  const size_t seen = mesh.first_incomplete - mesh.tail_base;
  for (size_t i = 0; i < seen; ++i) {
    const CallState& call = *mesh.tail[i];
    if (call.error || call.command.kind == Kind::kNondeterministic) continue;  // these are not done again
    ++to.recovery.done_again[call.command.operation];
    to.target = call.command.sequence;
    to.missing = call.ranks.size();
  }
}

void Core::end_catch_up(MeshState& mesh) {
  Recovery& recovery = mesh.catch_up->recovery;
  recovery.seconds = mesh.catch_up->since.seconds();
  int64_t calls = 0;
  for (const auto& [operation, times] : recovery.done_again) calls += times;
  LOG_INFO("mesh {}: caught up {:.2f} s after the loss was noticed; {} commands were done again", mesh.name,
           recovery.seconds, calls);
  mesh.recoveries += mesh.catch_up->losses;
  mesh.last_recovery = std::move(recovery);
  mesh.catch_up.reset();
}

// The newest watermark that can be had: from memory, else from disk, else the beginning.
bool Core::choose_restore_point(MeshState& mesh) {
  bool in_memory = !mesh.restore_failed;
  for (int rank = 0; rank < mesh.shape.size() && in_memory; ++rank)
    in_memory = !mesh.holders[own_piece(rank)].empty();
  in_memory = in_memory && !mesh.holders["replicated"].empty();
  if (mesh.watermark == 0 && !mesh.restore_failed) in_memory = true;  // nothing is needed
  if (!in_memory && mesh.watermark != mesh.durable) {
    LOG_WARN("mesh {}: watermark {} is in nobody's memory any more; going back to {} on disk", mesh.name,
             mesh.watermark, mesh.durable);
    if (auto reloaded = reload_tail(mesh, mesh.durable); !reloaded.ok()) {
      fail_mesh(mesh, reloaded.error());
      return false;
    }
    mesh.watermark = mesh.durable;
  }
  if (!in_memory) mesh.holders.clear();
  mesh.restore_failed = false;
  mesh.restore_point = mesh.watermark;
  mesh.from_disk = !in_memory && mesh.restore_point > 0;
  return true;
}

// The newest durable watermark turned out to be damaged: the one before it takes its place; without one,
// everything since the first call is done again.
void Core::give_up_durable(MeshState& mesh, const std::string& why) {
  mesh.unusable.push_back(mesh.durable);
  std::erase(mesh.durable_on_disk, mesh.durable);
  find_durable(mesh);
  LOG_WARN(
      "mesh {}: watermark {} on disk cannot be used ({}); going back to {}, which costs time and changes no "
      "result",
      mesh.name, mesh.unusable.back(), why,
      mesh.durable > 0 ? fmt::format("watermark {}", mesh.durable) : "the first command");
}

// The newest of those in the log that is still there.
void Core::find_durable(MeshState& mesh) const {
  while (!mesh.durable_on_disk.empty() &&
         !path_exists(watermark_folder(mesh, mesh.durable_on_disk.back()) + "/replicated")) {
    mesh.durable_on_disk.pop_back();
  }
  mesh.durable = mesh.durable_on_disk.empty() ? 0 : mesh.durable_on_disk.back();
}

// Calls up to the watermark were forgotten; those after an older one come back from the log.
Result<void> Core::reload_tail(MeshState& mesh, uint64_t from) {
  mutex.unlock();  // the log's thread needs it to report
  auto synced = log->sync(Deadline::after_ms(options.log_full_wait_ms));
  mutex.lock();
  RETURN_IF_ERROR(std::move(synced));
  ASSIGN_OR_RETURN(const LogContent content, read_log(log_path));
  ASSIGN_OR_RETURN(const History logged, read_history(content));
  const uint64_t first_kept = mesh.tail.empty() ? UINT64_MAX : mesh.tail.front()->command.sequence;
  std::deque<std::shared_ptr<CallState>> tail;
  for (const auto& call : logged.calls) {
    const uint64_t sequence = call.command.sequence;
    if (call.command.mesh != mesh.id || sequence <= from || sequence >= first_kept) continue;
    if (first_kept == UINT64_MAX && sequence > mesh.watermark) continue;
    tail.push_back(from_history(mesh, call));
  }
  const size_t added = tail.size();
  const uint64_t front = mesh.first_incomplete - mesh.tail_base;
  tail.insert(tail.end(), mesh.tail.begin(), mesh.tail.end());
  mesh.tail = std::move(tail);
  mesh.tail_base = 0;
  mesh.first_incomplete = added + front;
  return {};
}

std::shared_ptr<CallState> Core::from_history(MeshState& mesh, const LoggedCall& logged) {
  auto call = std::make_shared<CallState>();
  call->core = this;
  call->mesh = &mesh;
  call->command = logged.command;
  call->ranks = logged.command.ranks;
  if (call->ranks.empty()) {
    for (int rank = 0; rank < mesh.shape.size(); ++rank) call->ranks.push_back(rank);
  }
  call->outcomes.resize(call->ranks.size());
  call->have.assign(call->ranks.size(), 0);
  call->missing = call->ranks.size();
  call->dispatched = call->replayed = true;
  if (logged.result && logged.result->outcomes.size() == call->ranks.size()) {
    call->outcomes = logged.result->outcomes;
    call->have.assign(call->ranks.size(), 1);
    call->missing = 0;
    call->complete = call->done = true;
    for (size_t i = 0; i < call->outcomes.size() && !call->error; ++i) {
      const Outcome& outcome = call->outcomes[i];
      if (outcome.failed) call->error = Error{outcome.code, outcome.value};
    }
    call->failed_for_good = call->error.has_value();
  } else if (logged.command.kind == Kind::kNondeterministic) {
    call->error = make_error(ErrorCode::kPeerLost,
                             "command {} ({}) may or may not have run when the controller died; being "
                             "nondeterministic it is not run again",
                             logged.command.sequence, logged.command.operation);
    call->failed_for_good = true;
  }
  return call;
}

RollbackMessage Core::rollback_for(MeshState& mesh, const WorkerState& worker) {
  RollbackMessage order;
  order.epoch = mesh.epoch;
  order.watermark = mesh.restore_point;
  for (const auto& other : mesh.workers) {
    order.hosts.push_back(other.host.address.empty() ? "127.0.0.1" : other.host.address);
  }
  if (mesh.restore_point == 0) return order;
  // The piece that it keeps for another too: then every piece is again with two workers.
  for (const std::string& piece :
       {std::string("replicated"), own_piece(worker.id.rank), own_piece(mesh.buddy_for(worker.id.rank))}) {
    PieceSource source{piece, "", ""};
    const auto& holders = mesh.holders[piece];
    if (holders.empty()) {
      source.file = watermark_folder(mesh, mesh.restore_point) + "/" + piece;
    } else if (!holders.contains(worker.id.incarnation)) {
      for (const auto& peer : mesh.workers) {
        if (holders.contains(peer.id.incarnation)) source.endpoint = peer.peer_endpoint;
      }
    }
    order.sources.push_back(source);
  }
  return order;
}

void Core::advance(MeshState& mesh) {
  if (mesh.phase != MeshState::Phase::kRestoring || durable_position < mesh.epoch_position) return;
  bool all = true;
  for (auto& worker : mesh.workers) {
    all = all && worker.restored;
    if (!worker.hello || worker.rollback_sent) continue;
    // Fails until its line is connected too; tried again at the next tick.
    worker.rollback_sent =
        lines->send_to(worker.identity, pack(MessageType::kRollback, rollback_for(mesh, worker))).ok();
  }
  if (!all) return;
  mesh.phase = MeshState::Phase::kRunning;
  mesh.ran = true;
  if (mesh.catch_up) {  // else it is the start, or a command that failed
    Recovery& recovery = mesh.catch_up->recovery;
    recovery.seconds_to_replay = mesh.catch_up->since.seconds();
    recovery.from = mesh.restore_point == 0 ? RestoredFrom::kBeginning
                    : mesh.from_disk        ? RestoredFrom::kDisk
                                            : RestoredFrom::kMemory;
    LOG_INFO("mesh {}: epoch {} runs again from watermark {} ({}) after {:.2f} s", mesh.name, mesh.epoch,
             mesh.restore_point, place_of(recovery.from), recovery.seconds_to_replay);
    if (mesh.catch_up->target == 0) end_catch_up(mesh);
  }
  mesh.next_dispatch = mesh.tail_base;
  mesh.last_dispatched = mesh.restore_point;
  mesh.dispatched_since_watermark = 0;
  mesh.since_watermark.restart();
  mesh.oldest_since.restart();
  for (auto& worker : mesh.workers) {
    worker.next_result = mesh.next_dispatch;
    if (mesh.restore_point == 0) continue;
    mesh.holders["replicated"].insert(worker.id.incarnation);
    mesh.holders[own_piece(worker.id.rank)].insert(worker.id.incarnation);
    mesh.holders[own_piece(mesh.buddy_for(worker.id.rank))].insert(worker.id.incarnation);
  }
  // Results that nobody holds any more are made again by the replay, and dropped again after it.
  const uint64_t last = mesh.tail.empty() ? mesh.restore_point : mesh.tail.back()->command.sequence;
  for (const uint64_t sequence : mesh.released) mesh.releases.emplace_back(last, sequence);
  std::sort(mesh.releases.begin(), mesh.releases.end());
  mesh.released.clear();
  dispatch(mesh);
  settle(mesh);
  for (const auto& fetch : fetches) {
    if (fetch->call->mesh == &mesh && !fetch->outcome) send_fetch(*fetch);
  }
  changed.notify_all();
}

void Core::on_restored(const RestoredMessage& restored) {
  MeshState* mesh = nullptr;
  WorkerState* worker = find_worker(restored.from, &mesh);
  if (worker == nullptr || restored.epoch != mesh->epoch || mesh->phase != MeshState::Phase::kRestoring)
    return;
  if (!restored.error.empty()) {
    if (mesh->restore_point == 0) {  // which needs nothing
      return fail_mesh(*mesh,
                       make_error(ErrorCode::kCorrupt,
                                  "rank {} cannot even go back to before the first command: {}; start a "
                                  "new run",
                                  restored.from.rank, restored.error));
    }
    // What it would go back to is sound, and there when somebody has made room.
    if (restored.code == ErrorCode::kFull)
      return fail_mesh(*mesh, make_error(restored.code, "rank {} cannot go back to watermark {}: {}",
                                         restored.from.rank, restored.watermark, restored.error));
    if (mesh->from_disk)
      give_up_durable(*mesh, fmt::format("rank {}: {}", restored.from.rank, restored.error));
    mesh->restore_failed = true;
    return recover(*mesh, {},
                   fmt::format("rank {} could not restore: {}", restored.from.rank, restored.error));
  }
  worker->restored = true;
  advance(*mesh);
}

}  // namespace flywheel::runtime
