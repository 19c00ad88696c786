// Plays a pipeline schedule in time: what runs when, what stays idle, what memory is live.
//
// Each worker does its actions in order; an action begins when the worker is free and its input is there: for
// a forward the output of the stage before, for a backward the gradient from the stage after, each
// `send_seconds` old where it comes from another worker. Sends cost the workers no time of their own: they
// are buffered and go beside the computation. Where the schedule has explicit sends and receives, these are
// passed over here; check() (pipeline_schedule.h) plays them as blocking.
//
// Pure functions, any thread. Errors: kInvalid for a deadlock, naming an action that waits for ever.
//
//   ASSIGN_OR_RETURN(Timeline t, simulate(schedule, {.stages = {{.forward = 1, .backward = 1, .weight =
//   1}}})); t.bubble();        // idle over work
#pragma once

#include <string>
#include <vector>

#include "train/pipeline_schedule.h"

namespace flywheel::train {

// Of one stage, for one microbatch. A backward that is not split costs backward + weight.
struct StageCost {
  double forward = 1, backward = 1, weight = 1;  // seconds
  double activations = 1;      // bytes that the forward leaves and that go with the last gradient
  double kept_for_weight = 1;  // bytes of them that outlive the input's gradient in a split backward
};

struct PipelineCosts {
  std::vector<StageCost> stages = {{}};  // one for each stage, or one for all
  double send_seconds = 0;               // from a worker to another
};

struct TimelineEvent {
  Action action;
  double start = 0, end = 0;
};

struct Timeline {
  std::vector<std::vector<TimelineEvent>> workers;
  std::vector<double> busy_seconds, peak_bytes;  // by worker
  double seconds = 0;                            // from the first action of all to the last
  double window_seconds = 0;  // the longest worker's, from its first action to its last: steps follow at this
                              // distance where each worker updates on its own
  // Idle time over work, of the worker that decides: window over the busiest worker's time, less 1.
  double bubble() const;
};

Result<Timeline> simulate(const PipelineSchedule& schedule, const PipelineCosts& costs);

}  // namespace flywheel::train
