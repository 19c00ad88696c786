// What a run tells of itself while it goes on: each step, evaluation, recovery and event goes into its
// report, the store, the metrics, the log and the hooks of whoever started it; and how long the steps took.
//
// What the command log answered for an earlier controller (`replayed`) was told then: it is part of the
// report and of the store, and of nothing that measures or warns.
//
// Ownership: borrows all that it is given. Threads: one, on which hooks are called. Errors: none, as no run
// stops because a note could not be written; that is a warning.
//
//   RunNotes notes(config, hooks, record, metrics, report, machine);
//   notes.begin();                                         // the first step is sent off
//   notes.note_step(result, replayed, {mesh.status(), newest_checkpoint});
#pragma once

#include <cstdint>
#include <iterator>
#include <string>

#include "base/deadline.h"
#include "runtime/controller.h"
#include "train/meter.h"
#include "train/metrics.h"
#include "train/report.h"
#include "train/run_record.h"
#include "train/run_training.h"
#include "train/trainer.h"

namespace flywheel::train {

class RunNotes {
 public:
  RunNotes(const TrainConfig& config, const TrainHooks& hooks, RunRecord& record, TrainMetrics& metrics,
           TrainReport& report, Machine machine)
      : config_(config),
        hooks_(hooks),
        record_(record),
        metrics_(metrics),
        report_(report),
        meter_(machine) {}

  // The run's first step comes after so many.
  void begin_after(int64_t steps);
  int64_t steps_done() const { return first_step_ + std::ssize(report_.losses); }
  // Back to after so many steps: those that follow will be done again.
  void go_back_to(int64_t steps_done) { report_.forget_after(first_step_, steps_done); }

  // The clock begins, with the first step.
  void begin();
  // What was no step has ended; no step is under way.
  void steps_go_on() { meter_.begin(clock_.seconds()); }
  void steps_go_on(const runtime::Future& other);
  // All steps are done.
  void end();

  struct MeshNow {
    runtime::MeshStatus status;
    int64_t newest_checkpoint = 0;  // its step
  };
  void note_step(const StepResult& result, bool replayed, const MeshNow& mesh);
  // What the run's earlier controllers have left. Once, when the log has answered all that it can.
  void note_lives(const runtime::Lives& lives);
  // What losses have cost, where one is over since the last look.
  void note_recoveries(const runtime::MeshStatus& status, int64_t done);
  void note_evaluation(int64_t done, double loss);
  void note(const GuardEvent& event, bool replayed);
  void note(const DigestEvent& event, bool replayed);
  void note(const MeshChange& change, bool replayed);
  // metrics.prom, as they are now.
  void write_metrics();

 private:
  void note_routing(int64_t done, const RouterReport& router);
  void tell(int64_t step, const std::string& what);
  template <typename Event>
  void log_event(const Event& event, const char* file);

  const TrainConfig& config_;
  const TrainHooks& hooks_;
  RunRecord& record_;
  TrainMetrics& metrics_;
  TrainReport& report_;
  Meter meter_;
  Stopwatch clock_, since_metrics_;
  int64_t first_step_ = 0, told_checkpoint_ = 0;
  int64_t data_ranks_ = 0;      // of the mesh as it is now
  int recoveries_of_mesh_ = 0;  // noted so far
};

}  // namespace flywheel::train
