// Reading runs back.
#include <algorithm>
#include <array>

#include "base/config.h"
#include "base/process_liveness.h"
#include "store/metrics.h"
#include "store/store.h"
#include "store/store_internal.h"

namespace flywheel::store {
namespace {

constexpr int64_t kLostAfterMs = 30'000;
constexpr const char* kRunColumns =
    "SELECT id, name, kind, owner, host, pid, status, note, config, created_ms, finished_ms, heartbeat_ms, "
    "session_ms, earlier_ms FROM run ";

// Of a run with these fields. On this host its process is looked at, elsewhere its heartbeat must do.
RunStatus status_of(const std::string& text, const RunInfo& run, int64_t now, const std::string& this_host) {
  for (const RunStatus status : {RunStatus::kFinished, RunStatus::kFailed, RunStatus::kStopped}) {
    if (text == run_status_name(status)) return status;
  }
  // The heartbeat is by the database's clock, which may be another's: so much may they differ.
  const bool gone = run.host == this_host && !process_lives(run.pid, run.heartbeat_ms + kLostAfterMs);
  return gone || now - run.heartbeat_ms > kLostAfterMs ? RunStatus::kLost : RunStatus::kRunning;
}

Result<std::map<std::string, std::string>> read_pairs(Database& db, const std::string& table,
                                                      const std::string& run) {
  ASSIGN_OR_RETURN(const Rows rows, db.execute("SELECT key, value FROM " + table + " WHERE run = $1", {run}));
  std::map<std::string, std::string> pairs;
  for (const Row& row : rows) pairs[row.text(0)] = row.text(1);
  return pairs;
}

Result<std::vector<std::string>> read_refs(Database& db, const std::string& sql, const std::string& run) {
  ASSIGN_OR_RETURN(const Rows rows, db.execute(sql, {run}));
  std::vector<std::string> refs;
  for (const Row& row : rows) refs.push_back(fmt::format("{}:{}", row.text(0), row.integer(1)));
  return refs;
}

Result<RunInfo> read_run(Database& db, const Row& row, int64_t now, const std::string& this_host) {
  RunInfo run;
  run.id = row.text(0), run.name = row.text(1), run.kind = row.text(2), run.owner = row.text(3);
  run.host = row.text(4), run.pid = row.integer(5), run.note = row.text(7), run.config = row.text(8);
  run.created_ms = row.integer(9), run.finished_ms = row.integer(10), run.heartbeat_ms = row.integer(11);
  run.status = status_of(row.text(6), run, now, this_host);
  ASSIGN_OR_RETURN(run.params, read_pairs(db, "run_param", run.id));
  ASSIGN_OR_RETURN(run.tags, read_pairs(db, "run_tag", run.id));
  ASSIGN_OR_RETURN(
      const Rows metrics,
      db.execute("SELECT name, points, last_step, last_value FROM metric WHERE run = $1 ORDER BY name",
                 {run.id}));
  for (const Row& metric : metrics) {
    run.metrics.push_back({metric.text(0), metric.integer(1), metric.integer(2), metric.number(3)});
  }
  ASSIGN_OR_RETURN(run.inputs,
                   read_refs(db,
                             "SELECT a.name, a.version FROM run_input i JOIN artifact a ON a.id = "
                             "i.artifact WHERE i.run = $1 ORDER BY a.name, a.version",
                             run.id));
  ASSIGN_OR_RETURN(run.outputs,
                   read_refs(db, "SELECT name, version FROM artifact WHERE run = $1 ORDER BY id", run.id));
  const int64_t end = run.finished_ms != 0 ? run.finished_ms : run.heartbeat_ms;
  run.active_ms = std::max<int64_t>(row.integer(13) + end - row.integer(12), 0);
  return run;
}

Error no_such_run(Database& db, const std::string& id) {
  std::vector<std::string> ids;
  if (auto rows = db.execute("SELECT id FROM run ORDER BY created_ms DESC LIMIT 1000"); rows.ok()) {
    for (const Row& row : rows.value()) ids.push_back(row.text(0));
  }
  const std::string near = nearest_name(id, ids);
  return make_error(ErrorCode::kNotFound, "no run {}; {}`flywheel runs list` shows them", id,
                    near.empty() ? "" : "did you mean " + near + "? ");
}

}  // namespace

Result<RunInfo> Store::run_info(const std::string& id) {
  Database& db = *state_->db;
  return db.transact(Access::kRead, [&]() -> Result<RunInfo> {
    ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
    ASSIGN_OR_RETURN(const Rows rows, db.execute(std::string(kRunColumns) + "WHERE id = $1", {id}));
    if (rows.empty()) return no_such_run(db, id);
    return read_run(db, rows[0], now, state_->host);
  });
}

Result<std::vector<RunInfo>> Store::list_runs(const RunFilter& filter) {
  Database& db = *state_->db;
  return db.transact(Access::kRead, [&]() -> Result<std::vector<RunInfo>> {
    ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
    ASSIGN_OR_RETURN(
        const Rows rows,
        db.execute(std::string(kRunColumns) + "WHERE ($1 = '' OR name = $1) AND ($2 = '' OR kind = $2) "
                                              "ORDER BY created_ms DESC, id DESC",
                   {filter.name, filter.kind}));
    std::vector<RunInfo> runs;
    for (const Row& row : rows) {
      if (static_cast<int64_t>(runs.size()) >= filter.limit) break;
      ASSIGN_OR_RETURN(const auto tags, read_pairs(db, "run_tag", row.text(0)));
      bool wanted = true;
      for (const auto& [key, value] : filter.tags)
        wanted = wanted && tags.contains(key) && tags.at(key) == value;
      if (!wanted) continue;
      ASSIGN_OR_RETURN(RunInfo run, read_run(db, row, now, state_->host));
      runs.push_back(std::move(run));
    }
    return runs;
  });
}

Result<std::vector<MetricPoint>> Store::metric(const std::string& run, const std::string& name) {
  Database& db = *state_->db;
  return db.transact(Access::kRead, [&]() -> Result<std::vector<MetricPoint>> {
    ASSIGN_OR_RETURN(
        const Rows chunks,
        db.execute("SELECT data FROM metric_chunk WHERE run = $1 AND name = $2 ORDER BY session, sequence",
                   {run, name}));
    if (chunks.empty()) {
      ASSIGN_OR_RETURN(const Rows runs, db.execute("SELECT id FROM run WHERE id = $1", {run}));
      if (runs.empty()) return no_such_run(db, run);
      ASSIGN_OR_RETURN(const Rows rows,
                       db.execute("SELECT name FROM metric WHERE run = $1 ORDER BY name", {run}));
      std::string names;
      for (const Row& row : rows) names += (names.empty() ? "" : ", ") + row.text(0);
      return make_error(ErrorCode::kNotFound, "run {} has no metric {}; it has {}", run, name,
                        names.empty() ? "none" : names);
    }
    std::vector<MetricPoint> points;
    for (const Row& chunk : chunks) {
      if (auto unpacked = unpack_points(chunk.bytes(0), points); !unpacked.ok()) {
        return make_error(ErrorCode::kCorrupt, "run {} metric {}: {}", run, name, unpacked.error().message);
      }
    }
    keep_last_of_each_step(points);
    return points;
  });
}

}  // namespace flywheel::store
