// A pipeline schedule as data: for each worker the list of what it computes, in order.
//
// A model is cut into p * v stages in the order of its layers; each of p workers holds v of them (its
// chunks). A global batch is cut into m microbatches. A worker's list names kind, microbatch and chunk of
// each action; who sends what to whom follows from that, and with_communication() writes it down.
//
//   kind          order                                                    live activations of worker r
//   gpipe         all forwards, then all backwards (Huang et al. 2019)     m
//   1f1b          p-1-r forwards ahead, then one backward for each         p - r
//                 forward (Narayanan et al. 2019)
//   interleaved   1f1b over v chunks a worker (Narayanan et al. 2021)      (v-1)p + 2(p-1-r) + 1 chunks
//   zb-h1         1f1b with the weight's gradient as an action of its      p, or (v-1)p + p chunks
//                 own that fills bubbles (Qi et al. 2023)
//   zb-v          two chunks a worker, placed as a V, so that the last     2p chunks of half the size
//                 stage lies with the first (Qi et al. 2024)
//
// In gpipe, 1f1b and interleaved a backward makes both gradients; in the zero-bubble kinds kBackward makes
// the input's and kWeight the weight's. A stage's activations are live from its forward to the last of those.
//
// Pure functions, any thread. Errors: UserError for numbers that no schedule of that kind has; kInvalid from
// check() for a schedule that is wrong, saying which worker and action.
//
//   PipelineSchedule s = make_schedule(ScheduleKind::kZeroBubbleV, {.workers = 4, .microbatches = 8});
//   RETURN_IF_ERROR(check(s));
//   for (const Action& action : s.actions[rank]) ...
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/config.h"
#include "base/result.h"

namespace flywheel::train {

enum class ScheduleKind { kGPipe, kOneForwardOneBackward, kInterleaved, kZeroBubbleH1, kZeroBubbleV };

enum class ActionKind : uint8_t {
  kForward,
  kBackward,  // of the input, and of the weight too where the schedule does not split it
  kWeight,    // the weight's gradient alone
  // Written by with_communication(); each send has its receive on the peer.
  kSendForward,  // a stage's output to the next stage
  kReceiveForward,
  kSendBackward,  // the gradient of a stage's input to the stage before
  kReceiveBackward,
};

inline bool computes(ActionKind kind) {
  return kind == ActionKind::kForward || kind == ActionKind::kBackward || kind == ActionKind::kWeight;
}

struct Action {
  ActionKind kind = ActionKind::kForward;
  int64_t microbatch = 0;
  int chunk = 0;  // of this worker: which of its stages
  int peer = -1;  // sends and receives: the other worker
  bool operator==(const Action&) const = default;
};

struct PipelineSize {
  int workers = 1;           // p
  int64_t microbatches = 1;  // m
  int chunks = 0;            // v; 0: what the kind needs at least (1, 2 for interleaved and zb-v)
};

struct PipelineSchedule {
  ScheduleKind kind = ScheduleKind::kOneForwardOneBackward;
  int workers = 1, chunks = 1;
  int64_t microbatches = 1;
  bool splits_backward = false, has_communication = false;
  std::vector<std::vector<Action>> actions;  // by worker

  int stages() const { return workers * chunks; }
  int stage_of(int worker, int chunk) const;
  int worker_of(int stage) const;
  int chunk_of(int stage) const;
};

PipelineSchedule make_schedule(ScheduleKind kind, PipelineSize size);
// Whether make_schedule() accepts this; the reason if it does not.
Result<void> can_schedule(ScheduleKind kind, PipelineSize size);
// Chunks that PipelineSize::chunks 0 stands for.
int least_chunks(ScheduleKind kind);

// The same with every send and receive. All lists follow one order in time, so that not even sends that
// block until they are received can deadlock.
PipelineSchedule with_communication(const PipelineSchedule& schedule);

// Each forward, backward and weight action exactly once and in this order, on the worker that holds the
// stage; no deadlock (where sends are written down, with sends that block); peak activations within
// max_live().
Result<void> check(const PipelineSchedule& schedule);

// Forwards of one chunk that are live at once on a worker, at most: counted, and what the kind promises.
std::vector<int64_t> peak_live(const PipelineSchedule& schedule);
int64_t max_live(ScheduleKind kind, PipelineSize size, int worker);
// Of them those whose backward is done or under way and whose weight action is not, at most; 0 where a
// backward makes both gradients.
int64_t max_waiting(ScheduleKind kind, PipelineSize size, int worker);

// Idle time over work, by the formulas of the papers: (p-1)/m, (p-1)/(v m), and for the zero-bubble kinds
// with forward, backward and weight of equal cost (p-1)/(3 v m) and 0. Of the longest worker's time from its
// first to its last action; exact where m is a multiple of p (and at least 2p - 1 for zb-v).
double bubble_formula(ScheduleKind kind, PipelineSize size);

// "F3", "B0.1" (microbatch, and the chunk where there are several), "sf0>2" (send forward to worker 2).
std::string action_text(const Action& action, int chunks);
// A header line, then one line a worker.
std::string to_text(const PipelineSchedule& schedule);

}  // namespace flywheel::train

template <>
struct flywheel::ConfigEnum<flywheel::train::ScheduleKind> {
  using Kind = flywheel::train::ScheduleKind;
  static constexpr std::array<std::pair<const char*, Kind>, 5> names{{{"gpipe", Kind::kGPipe},
                                                                      {"1f1b", Kind::kOneForwardOneBackward},
                                                                      {"interleaved", Kind::kInterleaved},
                                                                      {"zb-h1", Kind::kZeroBubbleH1},
                                                                      {"zb-v", Kind::kZeroBubbleV}}};
};
