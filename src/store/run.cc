#include "store/run.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "base/deadline.h"
#include "base/log.h"
#include "store/metrics.h"
#include "store/params.h"
#include "store/store.h"
#include "store/store_internal.h"

namespace flywheel::store {
namespace {

constexpr auto kFlushEvery = std::chrono::seconds(1);
constexpr double kHeartbeatSeconds = 5;      // at most, and a quarter of its age: a young run is told well
constexpr size_t kFlushAtPoints = 1 << 16;   // more than this waiting: do not wait for the second
constexpr size_t kDropAtPoints = 4'000'000;  // 96 MB that cannot be written: the oldest go

int64_t wall_ms() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

struct Series {
  std::vector<MetricPoint> waiting;
  // The chunk that is not full yet is written again with each flush, until it is.
  std::vector<MetricPoint> tail;
  int64_t sequence = 0;  // of the tail
};

}  // namespace

const char* run_status_name(RunStatus status) {
  switch (status) {
    case RunStatus::kRunning:
      return "running";
    case RunStatus::kFinished:
      return "finished";
    case RunStatus::kFailed:
      return "failed";
    case RunStatus::kStopped:
      return "stopped";
    case RunStatus::kLost:
      return "lost";
  }
  return "?";
}

struct RunState {
  RunState(std::shared_ptr<StoreState> store, std::string id, int64_t session)
      : store_(std::move(store)), id_(std::move(id)), session_(session), thread_([this] { work(); }) {}

  ~RunState() {
    if (auto ended = finish(RunStatus::kFailed, "ended without saying how"); !ended.ok()) {
      LOG_WARN("store: run {}: {}", id_, ended.error().message);
    }
  }

  void log(std::string_view name, int64_t step, double value) {
    const int64_t now = wall_ms();
    bool wake = false;
    {
      const std::lock_guard lock(buffer_mutex_);
      if (ending_) return;
      auto found = series_.find(name);
      if (found == series_.end()) found = series_.emplace(std::string(name), Series{}).first;
      std::vector<MetricPoint>& waiting = found->second.waiting;
      waiting.push_back({step, now, value});
      wake = ++waiting_points_ == kFlushAtPoints;
      if (waiting_points_ >= kDropAtPoints) drop_oldest_half(waiting);
    }
    if (wake) wake_.notify_one();
  }

  Result<void> flush();
  Result<void> finish(RunStatus status, const std::string& note);

  std::shared_ptr<StoreState> store_;
  const std::string id_;

 private:
  void work();
  Result<void> beat();
  void drop_oldest_half(std::vector<MetricPoint>& waiting) {
    const size_t dropped = waiting.size() / 2;
    waiting.erase(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(dropped));
    waiting_points_ -= dropped;
    LOG_ERROR("store: run {}: metrics cannot be written; {} points were dropped", id_, dropped);
  }

  const int64_t session_;
  std::mutex buffer_mutex_;  // of the fields down to ending_
  std::map<std::string, Series, std::less<>> series_;
  size_t waiting_points_ = 0;
  bool ending_ = false;
  std::condition_variable wake_;
  std::mutex flush_mutex_;  // one flush at a time, taken before buffer_mutex_
  std::mutex finish_mutex_;
  bool finished_ = false;
  std::thread thread_;  // last: it uses all of the above
};

Result<void> RunState::flush() {
  const std::lock_guard one_at_a_time(flush_mutex_);
  // What is written now, taken out of the buffer so that log() never waits for the disk.
  std::map<std::string, Series, std::less<>> taken;
  {
    const std::lock_guard lock(buffer_mutex_);
    if (waiting_points_ == 0) return {};
    for (auto& [name, series] : series_) {
      if (series.waiting.empty()) continue;
      Series& out = taken[name];
      out.waiting.swap(series.waiting);
      out.tail = series.tail;
      out.sequence = series.sequence;
    }
    waiting_points_ = 0;
  }
  Database& db = *store_->db;
  auto written = db.transact(Access::kWrite, [&]() -> Result<void> {
    for (const auto& [name, series] : taken) {
      std::vector<MetricPoint> points = series.tail;
      points.insert(points.end(), series.waiting.begin(), series.waiting.end());
      int64_t sequence = series.sequence;
      for (size_t at = 0; at < points.size(); at += kPointsPerChunk, ++sequence) {
        const size_t count = std::min(kPointsPerChunk, points.size() - at);
        RETURN_IF_ERROR(
            db.execute("INSERT INTO metric_chunk (run, name, session, sequence, data) VALUES "
                       "($1, $2, $3, $4, $5) ON CONFLICT (run, name, session, sequence) "
                       "DO UPDATE SET data = excluded.data",
                       {id_, name, session_, sequence, Bytes{pack_points(&points[at], count)}}));
      }
      const MetricPoint& last = series.waiting.back();
      RETURN_IF_ERROR(
          db.execute("INSERT INTO metric (run, name, points, last_step, last_value) VALUES "
                     "($1, $2, $3, $4, $5) ON CONFLICT (run, name) DO UPDATE SET "
                     "points = metric.points + excluded.points, last_step = excluded.last_step, "
                     "last_value = excluded.last_value",
                     {id_, name, static_cast<int64_t>(series.waiting.size()), last.step, last.value}));
    }
    return {};
  });
  const std::lock_guard lock(buffer_mutex_);
  for (auto& [name, out] : taken) {
    Series& series = series_.find(name)->second;
    if (written.ok()) {
      series.tail.insert(series.tail.end(), out.waiting.begin(), out.waiting.end());
      const size_t full = series.tail.size() / kPointsPerChunk;
      series.sequence += static_cast<int64_t>(full);
      series.tail.erase(series.tail.begin(),
                        series.tail.begin() + static_cast<std::ptrdiff_t>(full * kPointsPerChunk));
    } else {
      waiting_points_ += out.waiting.size();
      series.waiting.insert(series.waiting.begin(), out.waiting.begin(), out.waiting.end());
    }
  }
  return written;
}

Result<void> RunState::beat() {
  Database& db = *store_->db;
  return db.transact(Access::kWrite, [&]() -> Result<void> {
    ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
    RETURN_IF_ERROR(
        db.execute("UPDATE run SET heartbeat_ms = $1 WHERE id = $2 AND session = $3", {now, id_, session_}));
    return {};
  });
}

void RunState::work() {
  const Stopwatch age;
  Stopwatch since_beat;
  bool failing = false;
  for (;;) {
    {
      std::unique_lock lock(buffer_mutex_);
      wake_.wait_for(lock, kFlushEvery, [&] { return ending_ || waiting_points_ >= kFlushAtPoints; });
      if (ending_) return;
    }
    auto written = flush();
    if (written.ok() && since_beat.seconds() >= std::min(kHeartbeatSeconds, age.seconds() / 4)) {
      written = beat();
      since_beat.restart();
    }
    // Once when it begins to fail, not every second; and no hot loop while many points wait.
    if (!written.ok() && !failing) LOG_WARN("store: run {}: {}; trying again", id_, written.error().message);
    failing = !written.ok();
    if (failing) {
      std::unique_lock lock(buffer_mutex_);
      wake_.wait_for(lock, kFlushEvery, [&] { return ending_; });
    }
  }
}

Result<void> RunState::finish(RunStatus status, const std::string& note) {
  const std::lock_guard once(finish_mutex_);
  if (finished_) return {};
  {
    const std::lock_guard lock(buffer_mutex_);
    ending_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
  RETURN_IF_ERROR(flush());
  Database& db = *store_->db;
  RETURN_IF_ERROR(db.transact(Access::kWrite, [&]() -> Result<void> {
    ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
    RETURN_IF_ERROR(
        db.execute("UPDATE run SET status = $1, note = $2, finished_ms = $3, heartbeat_ms = $3 "
                   "WHERE id = $4 AND session = $5",
                   {std::string(run_status_name(status)), note, now, id_, session_}));
    return {};
  }));
  finished_ = true;
  return {};
}

const std::string& Run::id() const {
  return state_->id_;
}

void Run::log_metric(std::string_view name, int64_t step, double value) {
  state_->log(name, step, value);
}

void Run::log_metrics(int64_t step, std::initializer_list<std::pair<std::string_view, double>> values) {
  for (const auto& [name, value] : values) state_->log(name, step, value);
}

Result<void> Run::flush() {
  return state_->flush();
}

Result<void> Run::finish(RunStatus status, const std::string& note) {
  CHECK(status != RunStatus::kRunning && status != RunStatus::kLost, "a run cannot finish as {}",
        run_status_name(status));
  return state_->finish(status, note);
}

Result<void> Run::add_input(const std::string& ref) {
  Database& db = *state_->store_->db;
  return db.transact(Access::kWrite, [&]() -> Result<void> {
    ASSIGN_OR_RETURN(const Artifact input, find_artifact(db, ref));
    RETURN_IF_ERROR(db.execute("INSERT INTO run_input (run, artifact) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                               {id(), input.id}));
    return {};
  });
}

Result<Run> Store::create_run(const NewRun& request) {
  RETURN_IF_ERROR(check_name(request.name));
  ASSIGN_OR_RETURN(const auto params, flatten_params(request.config));
  Database& db = *state_->db;
  ASSIGN_OR_RETURN(const std::string id, db.transact(Access::kWrite, [&]() -> Result<std::string> {
    ASSIGN_OR_RETURN(const int64_t number, next_number(db, "run", request.name));
    const std::string id = fmt::format("{}-{}", request.name, number);
    ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
    RETURN_IF_ERROR(
        db.execute("INSERT INTO run (id, name, kind, owner, host, pid, status, note, config, session, "
                   "created_ms, finished_ms, heartbeat_ms, session_ms) VALUES "
                   "($1, $2, $3, $4, $5, $6, 'running', '', $7, 1, $8, 0, $8, $8)",
                   {id, request.name, request.kind, request.owner.empty() ? state_->owner : request.owner,
                    state_->host, int64_t{::getpid()}, request.config, now}));
    for (const auto& [key, value] : params) {
      RETURN_IF_ERROR(
          db.execute("INSERT INTO run_param (run, key, value) VALUES ($1, $2, $3)", {id, key, value}));
    }
    return id;
  }));
  return Run(std::make_shared<RunState>(state_, id, 1));
}

Result<Run> Store::resume_run(const std::string& id) {
  Database& db = *state_->db;
  ASSIGN_OR_RETURN(const int64_t session, db.transact(Access::kWrite, [&]() -> Result<int64_t> {
    ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
    ASSIGN_OR_RETURN(
        const Rows rows,
        db.execute(
            "UPDATE run SET status = 'running', note = '', finished_ms = 0, heartbeat_ms = $1, "
            "earlier_ms = earlier_ms + CASE finished_ms WHEN 0 THEN heartbeat_ms ELSE finished_ms END - "
            "session_ms, session_ms = $1, host = $2, pid = $3, session = session + 1 WHERE id = $4 "
            "RETURNING session",
            {now, state_->host, int64_t{::getpid()}, id}));
    if (rows.empty())
      return make_error(ErrorCode::kNotFound, "no run {}; `flywheel runs list` shows them", id);
    return rows[0].integer(0);
  }));
  return Run(std::make_shared<RunState>(state_, id, session));
}

Result<void> Store::tag_run(const std::string& id, const std::map<std::string, std::string>& tags,
                            const std::vector<std::string>& removed) {
  for (const auto& [key, value] : tags) RETURN_IF_ERROR(check_word("a tag's key", key));
  ASSIGN_OR_RETURN(const RunInfo run, run_info(id));  // kNotFound names the nearest
  Database& db = *state_->db;
  return db.transact(Access::kWrite, [&]() -> Result<void> {
    for (const std::string& key : removed)
      RETURN_IF_ERROR(db.execute("DELETE FROM run_tag WHERE run = $1 AND key = $2", {run.id, key}));
    for (const auto& [key, value] : tags) {
      RETURN_IF_ERROR(
          db.execute("INSERT INTO run_tag (run, key, value) VALUES ($1, $2, $3) ON CONFLICT (run, key) "
                     "DO UPDATE SET value = excluded.value",
                     {run.id, key, value}));
    }
    return {};
  });
}

}  // namespace flywheel::store
