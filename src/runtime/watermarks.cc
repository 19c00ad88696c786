// Watermarks: a snapshot of all ranks of a mesh after the same call, so that losses cost little.
//
// The order to freeze goes down the line behind the last call that was sent, so every rank takes
// it at the same point of the stream, and nobody waits for anybody. Ranks copy what later calls would change
// (that is all that commands wait for), make the bytes on another thread, give their neighbour a copy of what
// is only theirs, and at times write it to disk. When all have it, the watermark counts.
#include "base/file.h"
#include "runtime/controller_internal.h"
#include "runtime/young.h"

namespace flywheel::runtime {
namespace {

// Of the rank that it cost most, in seconds: commands wait for the slowest.
double cost_of(const std::map<int, KeptMessage>& kept) {
  int64_t cost_us = 0;
  for (const auto& [rank, told] : kept) cost_us = std::max(cost_us, told.freeze_us + told.make_us);
  return static_cast<double>(cost_us) * 1e-6;
}

}  // namespace

std::string Core::watermark_folder(const MeshState& mesh, uint64_t watermark) const {
  return fmt::format("{}/watermarks/{}/{}", options.folder, mesh.name, watermark);
}

double Core::young_seconds(const MeshState& mesh) const {
  const SeenFailures seen{.worker_hours = options.worker_mtbf_hours,
                          .workers = mesh.shape.size(),
                          .watched_seconds = mesh.up_since.seconds(),
                          .failures = mesh.recoveries + (mesh.catch_up ? mesh.catch_up->losses : 0)};
  return young_interval_seconds(mesh.cost_seconds, estimated_mtbf_seconds(seen));
}

double Core::interval_seconds(const MeshState& mesh) const {
  const double seconds =
      std::max(static_cast<double>(options.watermark_interval_ms) / 1000, mesh.budget.paid_after_seconds());
  return options.young_interval ? std::max(seconds, young_seconds(mesh)) : seconds;
}

void Core::consider_watermark(MeshState& mesh) {
  if (mesh.phase != MeshState::Phase::kRunning) return;
  if (mesh.making != 0) {
    if (mesh.kept.size() == mesh.workers.size()) complete_watermark(mesh);
    if (mesh.making != 0 && mesh.making_since.seconds() > 120) {
      LOG_WARN("mesh {}: watermark {} was not made in 120 s; given up", mesh.name, mesh.making);
      give_up_watermark(mesh);
    }
    return;
  }
  if (mesh.last_dispatched <= mesh.watermark && !(mesh.want_durable && mesh.last_dispatched > mesh.durable)) {
    mesh.want_durable = false;
    return;
  }
  const double since = mesh.since_watermark.seconds();
  const bool many = mesh.dispatched_since_watermark >= options.watermark_max_commands;
  const bool due = mesh.budget.is_due(
      {.since = since, .interval = interval_seconds(mesh), .retry = mesh.retry_after, .many_calls = many});
  if (!due && !mesh.want_durable) return;
  mesh.budget.begin(since);
  mesh.making = mesh.last_dispatched;
  mesh.making_durable = mesh.want_durable || mesh.since_durable.seconds() * 1000 >=
                                                 static_cast<double>(options.durable_interval_ms);
  mesh.making_since.restart();
  mesh.kept.clear();
  mesh.dispatched_since_watermark = 0;
  mesh.released_before_making = mesh.released.size();
  const int n = mesh.shape.size();
  for (const auto& worker : mesh.workers) {
    WatermarkMessage order;
    order.epoch = mesh.epoch;
    order.watermark = mesh.making;
    order.complete = mesh.watermark;
    if (n > 1) order.buddy = mesh.workers[static_cast<size_t>(mesh.buddy_of(worker.id.rank))].peer_endpoint;
    if (mesh.making_durable) order.folder = watermark_folder(mesh, mesh.making);
    order.writes_replicated = worker.id.rank == 0;
    (void)lines->send_to(worker.identity, pack(MessageType::kWatermark, order));
  }
}

void Core::on_kept(const KeptMessage& kept) {
  MeshState* mesh = nullptr;
  if (find_worker(kept.from, &mesh) == nullptr || kept.epoch != mesh->epoch || kept.watermark != mesh->making)
    return;
  if (!kept.error.empty()) {
    LOG_WARN("mesh {}: rank {} could not keep watermark {}: {}", mesh->name, kept.from.rank, kept.watermark,
             kept.error);
    mesh->kept[kept.from.rank] = kept;
    return give_up_watermark(*mesh);
  }
  mesh->kept[kept.from.rank] = kept;
  if (mesh->kept.size() == mesh->workers.size()) complete_watermark(*mesh);
}

// What the ranks have told of their part counts, though nothing came of it.
void Core::give_up_watermark(MeshState& mesh) {
  mesh.budget.end(cost_of(mesh.kept));
  mesh.making = 0;
  mesh.retry_after = retry_seconds(mesh.retry_after, interval_seconds(mesh));
  mesh.since_watermark.restart();
}

void Core::complete_watermark(MeshState& mesh) {
  // A call before it whose result is still on its way: wait, so that the log has all that it stands on.
  const size_t front = mesh.first_incomplete - mesh.tail_base;
  if (front < mesh.tail.size() && mesh.tail[front]->command.sequence <= mesh.making) return;
  WatermarkRecord done{mesh.id, mesh.making, mesh.making_durable, mesh.kept.begin()->second.replicated_digest,
                       0};
  int64_t freeze_us = 0;
  for (const auto& [rank, kept] : mesh.kept) {
    if (kept.replicated_digest != done.replicated_digest) {
      return fail_mesh(
          mesh, make_error(ErrorCode::kCorrupt,
                           "after command {} ranks {} and {} differ in what is declared replicated: an "
                           "operation is not deterministic, or a machine computes wrongly",
                           mesh.making, mesh.kept.begin()->first, rank));
    }
    done.durable = done.durable && kept.durable;
    done.bytes += kept.rank_bytes;
    freeze_us = std::max(freeze_us, kept.freeze_us);
  }
  done.bytes += mesh.kept.begin()->second.replicated_bytes;
  record(RecordType::kWatermark, done);
  mesh.freeze_seconds = static_cast<double>(freeze_us) * 1e-6;
  mesh.cost_seconds = cost_of(mesh.kept);
  mesh.budget.end(mesh.cost_seconds);
  mesh.watermark = mesh.making;
  mesh.making = 0;
  mesh.retry_after = 0;
  ++mesh.watermarks;
  mesh.since_watermark.restart();
  mesh.holders.clear();
  const size_t n = mesh.workers.size();
  for (size_t rank = 0; rank < n; ++rank) {
    const uint64_t own = mesh.workers[rank].id.incarnation;
    auto& holders = mesh.holders[fmt::format("rank-{}", rank)];
    const int buddy = mesh.buddy_of(static_cast<int>(rank));
    holders = {own, mesh.workers[static_cast<size_t>(buddy)].id.incarnation};
    mesh.holders["replicated"].insert(own);
  }
  mesh.released.erase(mesh.released.begin(),
                      mesh.released.begin() + static_cast<std::ptrdiff_t>(mesh.released_before_making));
  while (!mesh.tail.empty() && mesh.tail.front()->command.sequence <= mesh.watermark) {
    mesh.tail.pop_front();
    ++mesh.tail_base;
  }
  if (done.durable) {
    mesh.durable = mesh.watermark;
    mesh.want_durable = false;
    mesh.since_durable.restart();
    mesh.durable_on_disk.push_back(mesh.durable);
    std::erase(mesh.unusable, mesh.durable);  // made again
    for (const uint64_t damaged : mesh.unusable) (void)remove_all(watermark_folder(mesh, damaged));
    mesh.unusable.clear();
    while (mesh.durable_on_disk.size() > 2) {  // the one before stays until this one is surely in the log
      (void)remove_all(watermark_folder(mesh, mesh.durable_on_disk.front()));
      mesh.durable_on_disk.erase(mesh.durable_on_disk.begin());
    }
    log->flush();
  } else if (mesh.making_durable) {
    mesh.since_durable.restart();  // the disk refused (the worker says why); later again
  }
  changed.notify_all();
}

}  // namespace flywheel::runtime
