#include "train/pipeline_simulator.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace flywheel::train {
namespace {

using enum ActionKind;

constexpr double kNever = std::numeric_limits<double>::infinity();

// When each stage's forward, backward and weight action of each microbatch ended; kNever: not yet.
class Ends {
 public:
  explicit Ends(const PipelineSchedule& schedule)
      : microbatches_(schedule.microbatches),
        ends_(static_cast<size_t>(3 * schedule.stages() * schedule.microbatches), kNever) {}
  double& of(ActionKind kind, int stage, int64_t microbatch) {
    return ends_[static_cast<size_t>((3 * stage + static_cast<int>(kind)) * microbatches_ + microbatch)];
  }

 private:
  int64_t microbatches_;
  std::vector<double> ends_;
};

struct Player {
  const PipelineSchedule& schedule;
  const PipelineCosts& costs;
  Ends ends;
  std::vector<size_t> next;     // by worker: the action that is due
  std::vector<double> free_at;  // by worker
  Timeline timeline;

  const StageCost& cost(int stage) const {
    return costs.stages[costs.stages.size() == 1 ? 0 : static_cast<size_t>(stage)];
  }
  double seconds(ActionKind kind, int stage) const {
    const StageCost& c = cost(stage);
    if (kind == kForward) return c.forward;
    if (kind == kWeight) return c.weight;
    return schedule.splits_backward ? c.backward : c.backward + c.weight;
  }

  // When all that the action needs is on the worker.
  double ready_at(const Action& a, int stage) {
    const int worker = schedule.worker_of(stage);
    const auto from = [&](int other, ActionKind kind) {
      const double sent = schedule.worker_of(other) == worker ? 0 : costs.send_seconds;
      return ends.of(kind, other, a.microbatch) + sent;
    };
    if (a.kind == kForward) return stage == 0 ? 0 : from(stage - 1, kForward);
    const double own = ends.of(kForward, stage, a.microbatch);
    if (a.kind == kWeight) return std::max(own, ends.of(kBackward, stage, a.microbatch));
    return stage + 1 == schedule.stages() ? own : std::max(own, from(stage + 1, kBackward));
  }

  // Does what the worker can do. `wake` gets the workers that may go on because of
  // it.
  void advance(int worker, std::vector<int>& wake) {
    const auto w = static_cast<size_t>(worker);
    const std::vector<Action>& list = schedule.actions[w];
    for (; next[w] < list.size(); ++next[w]) {
      const Action& a = list[next[w]];
      if (!computes(a.kind)) continue;
      const int stage = schedule.stage_of(worker, a.chunk);
      const double ready = ready_at(a, stage);
      if (ready == kNever) break;
      const double start = std::max(ready, free_at[w]), end = start + seconds(a.kind, stage);
      ends.of(a.kind, stage, a.microbatch) = end;
      free_at[w] = end;
      timeline.workers[w].push_back({a, start, end});
      timeline.busy_seconds[w] += end - start;
      if (a.kind == kForward && stage + 1 < schedule.stages()) wake.push_back(schedule.worker_of(stage + 1));
      if (a.kind == kBackward && stage > 0) wake.push_back(schedule.worker_of(stage - 1));
    }
  }

  void measure(int worker) {
    const auto w = static_cast<size_t>(worker);
    double bytes = 0, peak = 0;
    for (const TimelineEvent& event : timeline.workers[w]) {
      const StageCost& c = cost(schedule.stage_of(worker, event.action.chunk));
      const double kept = std::min(c.kept_for_weight, c.activations);
      if (event.action.kind == kForward) bytes += c.activations;
      peak = std::max(peak, bytes);
      if (event.action.kind == kBackward)
        bytes -= schedule.splits_backward ? c.activations - kept : c.activations;
      if (event.action.kind == kWeight) bytes -= kept;
    }
    timeline.peak_bytes[w] = peak;
    if (timeline.workers[w].empty()) return;
    const double first = timeline.workers[w].front().start, last = timeline.workers[w].back().end;
    timeline.seconds = std::max(timeline.seconds, last);
    timeline.window_seconds = std::max(timeline.window_seconds, last - first);
  }
};

}  // namespace

double Timeline::bubble() const {
  const double work = busy_seconds.empty() ? 0 : std::ranges::max(busy_seconds);
  return work > 0 ? window_seconds / work - 1 : 0;
}

Result<Timeline> simulate(const PipelineSchedule& schedule, const PipelineCosts& costs) {
  const size_t p = schedule.actions.size();
  CHECK(static_cast<int>(p) == schedule.workers, "{} lists for {} workers", p, schedule.workers);
  CHECK(costs.stages.size() == 1 || std::ssize(costs.stages) == schedule.stages(), "{} costs for {} stages",
        costs.stages.size(), schedule.stages());
  Player player{.schedule = schedule,
                .costs = costs,
                .ends = Ends(schedule),
                .next = std::vector<size_t>(p, 0),
                .free_at = std::vector<double>(p, 0),
                .timeline = {.workers = std::vector<std::vector<TimelineEvent>>(p),
                             .busy_seconds = std::vector<double>(p, 0),
                             .peak_bytes = std::vector<double>(p, 0)}};
  std::vector<int> wake;
  for (int worker = schedule.workers - 1; worker >= 0; --worker) wake.push_back(worker);
  while (!wake.empty()) {
    const int worker = wake.back();
    wake.pop_back();
    player.advance(worker, wake);
  }
  for (int worker = 0; worker < schedule.workers; ++worker) {
    const auto w = static_cast<size_t>(worker);
    if (player.next[w] < schedule.actions[w].size()) {
      return make_error(ErrorCode::kInvalid, "deadlock: worker {} waits for ever before its action {}, {}",
                        worker, player.next[w],
                        action_text(schedule.actions[w][player.next[w]], schedule.chunks));
    }
    player.measure(worker);
  }
  return std::move(player.timeline);
}

}  // namespace flywheel::train
