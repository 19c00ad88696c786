// One execution: its resolved config, parameters, metrics, tags, status, and the artifacts it used and made.
// Parameters are the config's values by key; tags are what people say of a run, at any time (Store::tag_run).
//
//   Run run = store.create_run({.name = "tiny", .kind = "train", .config = dump_config(config)}).value();
//   run.add_input("debian-docs@latest");
//   run.log_metric("loss", step, loss);              // buffered; a few tens of nanoseconds
//   run.finish(RunStatus::kFinished);
//
// Metrics are points (step, time, value) of a named series. They are written in batches once a second, when
// many are waiting, and by flush() and finish(); a killed process loses at most the last second of them. A
// step that is logged again (after a resume) replaces the earlier point when read.
//
// Ownership: Run is a handle on shared state; the last one to go marks a run that was not finished as failed.
// Threads: every function may be called from any thread. Each open run has one thread, which writes metrics
// and the heartbeat. Do not carry a handle over fork().
// Errors: log_metric never fails: what cannot be written (disk full) is kept and tried again, up to a bound;
// flush() and finish() say what went wrong.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace flywheel::store {

struct Artifact;
struct RunState;

// kLost is never stored: a running run whose process on this host is gone, or without a heartbeat for 30 s.
enum class RunStatus { kRunning, kFinished, kFailed, kStopped, kLost };
const char* run_status_name(RunStatus status);

struct NewRun {
  std::string name = "run";  // the id is this and the next number: "tiny-7"
  std::string kind = {};     // train, data, tokenizer, evaluate, ...
  std::string config = {};   // resolved, as YAML or JSON text; its values are the run's parameters (params.h)
  std::string owner = {};    // default: the user's name
};

struct MetricPoint {
  int64_t step = 0;
  int64_t time_ms = 0;  // since 1970
  double value = 0;     // NaN and infinities are kept
};

struct MetricSummary {
  std::string name;
  int64_t points = 0;  // written, replaced ones included
  int64_t last_step = 0;
  double last_value = 0;
};

struct RunInfo {
  std::string id, name, kind, owner, host, config, note;
  RunStatus status = RunStatus::kRunning;
  int64_t pid = 0;
  int64_t created_ms = 0, finished_ms = 0, heartbeat_ms = 0;  // finished_ms is 0 while it runs
  int64_t active_ms =
      0;  // how long it was at work, as far as its heartbeat tells: not between end and resume
  std::map<std::string, std::string> params, tags;
  std::vector<MetricSummary> metrics;
  std::vector<std::string> inputs, outputs;  // "name:version"
};

class Run {
 public:
  const std::string& id() const;

  void log_metric(std::string_view name, int64_t step, double value);
  void log_metrics(int64_t step, std::initializer_list<std::pair<std::string_view, double>> values);
  Result<void> flush();

  // An artifact that this run reads: "name:version", "name@alias" or "name".
  Result<void> add_input(const std::string& ref);

  // Writes what is waiting and the status. `note`: why it failed or stopped. A second call changes nothing.
  Result<void> finish(RunStatus status, const std::string& note = "");

 private:
  friend class Store;
  explicit Run(std::shared_ptr<RunState> state) : state_(std::move(state)) {}
  std::shared_ptr<RunState> state_;
};

}  // namespace flywheel::store
