// check() and with_communication() of pipeline_schedule.h: a schedule played without time.
#include <algorithm>
#include <optional>
#include <tuple>

#include "base/check.h"
#include "train/pipeline_simulator.h"

namespace flywheel::train {
namespace {

using enum ActionKind;

template <typename... Args>
Error wrong(const PipelineSchedule& schedule, int worker, const Action& action,
            fmt::format_string<Args...> format, Args&&... args) {
  return make_error(ErrorCode::kInvalid, "worker {}: {} {}", worker, action_text(action, schedule.chunks),
                    fmt::format(format, std::forward<Args>(args)...));
}

// Which of a stage's actions on a microbatch have been seen.
struct Seen {
  bool kinds[7] = {};
  bool& operator[](ActionKind kind) { return kinds[static_cast<size_t>(kind)]; }
};

class Board {
 public:
  explicit Board(const PipelineSchedule& s)
      : microbatches_(s.microbatches), seen_(static_cast<size_t>(s.stages() * s.microbatches)) {}
  Seen& at(int stage, int64_t microbatch) {
    return seen_[static_cast<size_t>(stage * microbatches_ + microbatch)];
  }

 private:
  int64_t microbatches_;
  std::vector<Seen> seen_;
};

// The action that must lie before this one on the same worker, if any; communication only where written.
std::optional<ActionKind> needs_before(const PipelineSchedule& s, ActionKind kind, int stage) {
  const auto local = [&](int other) { return s.worker_of(other) == s.worker_of(stage); };
  switch (kind) {
    case kForward:
      if (s.has_communication && stage > 0 && !local(stage - 1)) return kReceiveForward;
      return std::nullopt;
    case kBackward:
      if (s.has_communication && stage + 1 < s.stages() && !local(stage + 1)) return kReceiveBackward;
      return kForward;
    case kWeight:
    case kSendBackward:
      return kBackward;
    case kSendForward:
      return kForward;
    case kReceiveForward:
      return std::nullopt;
    case kReceiveBackward:
      return kForward;
  }
  return std::nullopt;
}

// The stage at the other end of a send or receive.
int other_stage(ActionKind kind, int stage) {
  return kind == kSendForward || kind == kReceiveBackward ? stage + 1 : stage - 1;
}

// Ranges, places, order on one worker, and each exactly once.
Result<void> check_lists(const PipelineSchedule& s) {
  if (std::ssize(s.actions) != s.workers) {
    return make_error(ErrorCode::kInvalid, "{} lists of actions for {} workers", s.actions.size(), s.workers);
  }
  Board board(s);
  for (int worker = 0; worker < s.workers; ++worker) {
    for (const Action& a : s.actions[static_cast<size_t>(worker)]) {
      if (a.microbatch < 0 || a.microbatch >= s.microbatches || a.chunk < 0 || a.chunk >= s.chunks)
        return wrong(s, worker, a, "is outside of {} microbatches and {} chunks", s.microbatches, s.chunks);
      if (a.kind == kWeight && !s.splits_backward)
        return wrong(s, worker, a, "has no place where backwards are whole");
      const int stage = s.stage_of(worker, a.chunk);
      Seen& seen = board.at(stage, a.microbatch);
      if (seen[a.kind]) return wrong(s, worker, a, "comes twice");
      const auto before = needs_before(s, a.kind, stage);
      if (before && !seen[*before]) {
        return wrong(s, worker, a, "comes before its {}",
                     action_text({*before, a.microbatch, a.chunk}, s.chunks));
      }
      if (a.kind == kBackward && !seen[kForward]) return wrong(s, worker, a, "comes before its forward");
      seen[a.kind] = true;
      if (a.kind < kSendForward) continue;
      const int other = other_stage(a.kind, stage);
      if (!s.has_communication || other < 0 || other >= s.stages() || s.worker_of(other) != a.peer ||
          a.peer == worker) {
        return wrong(s, worker, a, "has no partner there");
      }
    }
  }
  for (int stage = 0; stage < s.stages(); ++stage) {
    for (int64_t microbatch = 0; microbatch < s.microbatches; ++microbatch) {
      Seen& seen = board.at(stage, microbatch);
      for (const ActionKind kind : {kForward, kBackward, kWeight}) {
        if (!seen[kind] && (kind != kWeight || s.splits_backward))
          return wrong(s, s.worker_of(stage), {kind, microbatch, s.chunk_of(stage)}, "is missing");
      }
    }
  }
  return {};
}

// Sends that block until the peer stands at the receive.
Result<void> check_rendezvous(const PipelineSchedule& s) {
  const auto partner = [](ActionKind kind) {
    return kind == kSendForward      ? kReceiveForward
           : kind == kReceiveForward ? kSendForward
           : kind == kSendBackward   ? kReceiveBackward
                                     : kSendBackward;
  };
  std::vector<size_t> next(s.actions.size(), 0);
  std::vector<int> wake;
  for (int worker = 0; worker < s.workers; ++worker) wake.push_back(worker);
  while (!wake.empty()) {
    const int worker = wake.back();
    wake.pop_back();
    const auto w = static_cast<size_t>(worker);
    while (next[w] < s.actions[w].size()) {
      const Action& a = s.actions[w][next[w]];
      if (a.kind >= kSendForward) {
        const auto peer = static_cast<size_t>(a.peer);
        if (next[peer] == s.actions[peer].size()) break;
        const int stage = other_stage(a.kind, s.stage_of(worker, a.chunk));
        const Action match{partner(a.kind), a.microbatch, s.chunk_of(stage), worker};
        if (s.actions[peer][next[peer]] != match) break;
        ++next[peer];
        wake.push_back(a.peer);
      }
      ++next[w];
    }
  }
  for (int worker = 0; worker < s.workers; ++worker) {
    const auto w = static_cast<size_t>(worker);
    if (next[w] < s.actions[w].size())
      return wrong(s, worker, s.actions[w][next[w]], "waits for ever: a deadlock");
  }
  return {};
}

}  // namespace

Result<void> check(const PipelineSchedule& schedule) {
  RETURN_IF_ERROR(check_lists(schedule));
  if (schedule.has_communication) RETURN_IF_ERROR(check_rendezvous(schedule));
  const Result<Timeline> played = simulate(schedule, {});
  if (!played.ok()) return played.error();
  const std::vector<int64_t> live = peak_live(schedule);
  for (int worker = 0; worker < schedule.workers; ++worker) {
    const int64_t bound =
        max_live(schedule.kind, {schedule.workers, schedule.microbatches, schedule.chunks}, worker);
    if (live[static_cast<size_t>(worker)] > bound) {
      return make_error(ErrorCode::kInvalid, "worker {}: {} activations are live at once; {} promises {}",
                        worker, live[static_cast<size_t>(worker)], config_name(schedule.kind), bound);
    }
  }
  return {};
}

PipelineSchedule with_communication(const PipelineSchedule& schedule) {
  CHECK(!schedule.has_communication, "{} has its communication already", config_name(schedule.kind));
  const Result<Timeline> timeline = simulate(schedule, {});
  CHECK(timeline.ok(), "{}", timeline.error().message);
  // All in one order: a computation stands at its start, a message at the end of what made it and before what
  // starts then. Each worker's list is a part of this order.
  struct Entry {
    double time;
    bool is_computation;
    int worker;
    size_t index;  // keeps a worker's own order
    Action action;
  };
  std::vector<Entry> entries;
  for (int worker = 0; worker < schedule.workers; ++worker) {
    const auto& events = timeline->workers[static_cast<size_t>(worker)];
    for (size_t i = 0; i < events.size(); ++i) {
      const Action& a = events[i].action;
      entries.push_back({events[i].start, true, worker, i, a});
      const int stage = schedule.stage_of(worker, a.chunk);
      const int other = a.kind == kForward ? stage + 1 : stage - 1;
      if (a.kind == kWeight || other < 0 || other >= schedule.stages()) continue;
      const int peer = schedule.worker_of(other);
      if (peer == worker) continue;
      entries.push_back({events[i].end,
                         false,
                         worker,
                         i,
                         {a.kind == kForward ? kSendForward : kSendBackward, a.microbatch, a.chunk, peer}});
    }
  }
  std::ranges::sort(entries, {},
                    [](const Entry& e) { return std::tuple(e.time, e.is_computation, e.worker, e.index); });
  PipelineSchedule out = schedule;
  out.has_communication = true;
  for (auto& list : out.actions) list.clear();
  for (const Entry& e : entries) {
    out.actions[static_cast<size_t>(e.worker)].push_back(e.action);
    if (e.is_computation) continue;
    const int stage = schedule.stage_of(e.worker, e.action.chunk);
    const int other = other_stage(e.action.kind, stage);
    out.actions[static_cast<size_t>(e.action.peer)].push_back(
        {e.action.kind == kSendForward ? kReceiveForward : kReceiveBackward, e.action.microbatch,
         schedule.chunk_of(other), e.worker});
  }
  return out;
}

}  // namespace flywheel::train
