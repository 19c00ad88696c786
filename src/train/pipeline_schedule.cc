#include "train/pipeline_schedule.h"

#include <algorithm>

#include "base/check.h"

namespace flywheel::train {
namespace {

using enum ActionKind;

constexpr int kMostWorkers = 4096, kMostChunks = 256;
constexpr int64_t kMostMicrobatches = 1 << 20, kMostActions = 1 << 24;

PipelineSize filled(ScheduleKind kind, PipelineSize size) {
  if (size.chunks == 0) size.chunks = least_chunks(kind);
  return size;
}

bool splits(ScheduleKind kind) {
  return kind == ScheduleKind::kZeroBubbleH1 || kind == ScheduleKind::kZeroBubbleV;
}

// With several chunks, microbatches go in rounds: a round's worth through chunk 0, then through chunk 1...
// A round has as many as there are workers; where that does not divide m, the next larger number that does.
int64_t round_size(const PipelineSize& size) {
  return size.microbatches / std::max<int64_t>(1, size.microbatches / size.workers);
}

// The k-th forward (or, chunks taken from the last to the first, backward) of every worker.
Action nth(ActionKind kind, int64_t k, int64_t round, int chunks) {
  const auto chunk = static_cast<int>(k / round % chunks);
  return {.kind = kind,
          .microbatch = k / (round * chunks) * round + k % round,
          .chunk = kind == kForward ? chunk : chunks - 1 - chunk};
}

// Forwards that worker r does before its first backward's turn: enough for the first microbatch to go down
// the pipeline and its gradient to come back.
int64_t forwards_ahead(ScheduleKind kind, const PipelineSize& size, int worker) {
  const int64_t all = size.microbatches * size.chunks, behind = size.workers - 1 - worker;
  if (kind == ScheduleKind::kGPipe) return all;
  const int64_t hops = kind == ScheduleKind::kInterleaved ? 2 * behind : behind;
  return std::min(all, (size.chunks - 1) * round_size(size) + hops);
}

// gpipe, 1f1b, interleaved and zb-h1 differ in how many forwards go ahead, and in the weight actions, which
// follow `worker` backwards later: a worker far down the pipeline has few forwards ahead and keeps as many
// activations for its weight actions instead.
std::vector<Action> one_forward_one_backward(ScheduleKind kind, const PipelineSize& size, int worker) {
  const int64_t all = size.microbatches * size.chunks, round = round_size(size);
  const int64_t ahead = forwards_ahead(kind, size, worker);
  std::vector<Action> list;
  int64_t forwards = 0, weights = 0;
  while (forwards < ahead) list.push_back(nth(kForward, forwards++, round, size.chunks));
  for (int64_t backwards = 0; backwards < all; ++backwards) {
    if (forwards < all) list.push_back(nth(kForward, forwards++, round, size.chunks));
    list.push_back(nth(kBackward, backwards, round, size.chunks));
    if (splits(kind) && backwards >= worker) list.push_back(nth(kWeight, weights++, round, size.chunks));
  }
  while (splits(kind) && weights < all) list.push_back(nth(kWeight, weights++, round, size.chunks));
  return list;
}

// Qi et al. 2024: chunk 0 goes down the V (stage r), chunk 1 comes back up (stage 2p-1-r). The pattern is
// made for at least 2p-1 microbatches; with fewer, those that are not there are left out.
std::vector<Action> v_shaped(const PipelineSize& size, int worker) {
  const int64_t p = size.workers, r = worker, n = std::max(2 * p - 1, size.microbatches);
  std::vector<Action> list;
  int64_t done[3][2] = {};
  const auto add = [&](ActionKind kind, int chunk) {
    const int64_t microbatch = done[static_cast<int>(kind)][chunk]++;
    if (microbatch < size.microbatches) list.push_back({kind, microbatch, chunk});
  };
  const auto& forwards = done[static_cast<int>(kForward)];
  const auto& backwards = done[static_cast<int>(kBackward)];
  const auto& weights = done[static_cast<int>(kWeight)];
  for (int64_t i = 0; i < 2 * (p - r) - 1; ++i) add(kForward, 0);
  for (int64_t i = 0; i < r; ++i) add(kForward, 1), add(kForward, 0);
  for (int64_t i = 0; i < p - r; ++i) add(kForward, 1), add(kBackward, 1), add(kWeight, 1);
  while (forwards[1] < n) {  // the steady state: both chunks in turn
    if (forwards[0] < n) add(kForward, 0);
    add(kBackward, 0), add(kWeight, 0);
    add(kForward, 1), add(kBackward, 1), add(kWeight, 1);
  }
  for (int64_t i = 0; i < r; ++i) add(kBackward, 0), add(kBackward, 1);
  for (int64_t i = 0; i < p - r; ++i) add(kBackward, 0), add(kWeight, 0);
  while (weights[1] < backwards[1]) add(kWeight, 1);
  while (weights[0] < backwards[0]) add(kWeight, 0);
  return list;
}

}  // namespace

int least_chunks(ScheduleKind kind) {
  return kind == ScheduleKind::kInterleaved || kind == ScheduleKind::kZeroBubbleV ? 2 : 1;
}

int PipelineSchedule::stage_of(int worker, int chunk) const {
  if (kind == ScheduleKind::kZeroBubbleV) return chunk == 0 ? worker : 2 * workers - 1 - worker;
  return chunk * workers + worker;
}

int PipelineSchedule::worker_of(int stage) const {
  if (kind == ScheduleKind::kZeroBubbleV) return std::min(stage, 2 * workers - 1 - stage);
  return stage % workers;
}

int PipelineSchedule::chunk_of(int stage) const {
  return stage / workers;
}

Result<void> can_schedule(ScheduleKind kind, PipelineSize size) {
  size = filled(kind, size);
  const char* name = config_name(kind);
  const auto invalid = [](std::string why) { return Error{ErrorCode::kInvalid, std::move(why)}; };
  if (size.workers < 1 || size.workers > kMostWorkers)
    return invalid(fmt::format("{} pipeline workers; from 1 to {} are possible", size.workers, kMostWorkers));
  if (size.microbatches < 1 || size.microbatches > kMostMicrobatches)
    return invalid(
        fmt::format("{} microbatches; from 1 to {} are possible", size.microbatches, kMostMicrobatches));
  if (size.chunks < 1 || size.chunks > kMostChunks)
    return invalid(fmt::format("{} chunks a worker; from 1 to {} are possible", size.chunks, kMostChunks));
  if (3 * size.workers * size.chunks * size.microbatches > kMostActions)
    return invalid(fmt::format("{} workers with {} chunks and {} microbatches make over {} actions",
                               size.workers, size.chunks, size.microbatches, kMostActions));
  const bool one = kind == ScheduleKind::kGPipe || kind == ScheduleKind::kOneForwardOneBackward;
  if (one && size.chunks != 1)
    return invalid(
        fmt::format("{} has one chunk a worker, not {}; interleaved has several", name, size.chunks));
  if (kind == ScheduleKind::kInterleaved && size.chunks < 2)
    return invalid("interleaved needs at least 2 chunks a worker; with one it is 1f1b");
  if (kind == ScheduleKind::kZeroBubbleV && size.chunks != 2)
    return invalid(fmt::format("zb-v has 2 chunks a worker, not {}", size.chunks));
  const int64_t rounds = std::max<int64_t>(1, size.microbatches / size.workers);
  if (size.chunks > 1 && kind != ScheduleKind::kZeroBubbleV && size.microbatches % rounds != 0) {
    return invalid(
        fmt::format("{} microbatches do not divide into {} equal rounds of at least {} (one for "
                    "each worker); {} do",
                    size.microbatches, rounds, size.workers,
                    (size.microbatches + size.workers - 1) / size.workers * size.workers));
  }
  return {};
}

PipelineSchedule make_schedule(ScheduleKind kind, PipelineSize size) {
  size = filled(kind, size);
  can_schedule(kind, size).value_or_throw("pipeline schedule");
  PipelineSchedule schedule{.kind = kind,
                            .workers = size.workers,
                            .chunks = size.chunks,
                            .microbatches = size.microbatches,
                            .splits_backward = splits(kind),
                            .actions = {}};
  for (int worker = 0; worker < size.workers; ++worker) {
    schedule.actions.push_back(kind == ScheduleKind::kZeroBubbleV
                                   ? v_shaped(size, worker)
                                   : one_forward_one_backward(kind, size, worker));
  }
  return schedule;
}

std::vector<int64_t> peak_live(const PipelineSchedule& schedule) {
  std::vector<int64_t> peaks;
  for (const std::vector<Action>& list : schedule.actions) {
    int64_t live = 0, peak = 0;
    for (const Action& action : list) {
      if (action.kind == kForward) peak = std::max(peak, ++live);
      if (action.kind == (schedule.splits_backward ? kWeight : kBackward)) --live;
    }
    peaks.push_back(peak);
  }
  return peaks;
}

int64_t max_live(ScheduleKind kind, PipelineSize size, int worker) {
  size = filled(kind, size);
  const int64_t all = size.microbatches * size.chunks;
  if (kind == ScheduleKind::kZeroBubbleV) return std::min<int64_t>(all, 2 * size.workers);
  // One forward more than those ahead of the backwards; and what waits for its weight action.
  const int64_t waiting = kind == ScheduleKind::kZeroBubbleH1 ? worker : 0;
  return std::min(all, forwards_ahead(kind, size, worker) + 1 + waiting);
}

int64_t max_waiting(ScheduleKind kind, PipelineSize size, int worker) {
  size = filled(kind, size);
  if (!splits(kind)) return 0;
  const int64_t before = kind == ScheduleKind::kZeroBubbleV ? 2 * worker : worker;
  return std::min(size.microbatches * size.chunks, before + 1);
}

double bubble_formula(ScheduleKind kind, PipelineSize size) {
  size = filled(kind, size);
  const double fill =
      static_cast<double>(size.workers - 1) / static_cast<double>(size.microbatches * size.chunks);
  switch (kind) {
    case ScheduleKind::kGPipe:
    case ScheduleKind::kOneForwardOneBackward:
    case ScheduleKind::kInterleaved:
      return fill;
    case ScheduleKind::kZeroBubbleH1:
      return fill / 3;
    case ScheduleKind::kZeroBubbleV:
      return 0;
  }
  CHECK(false, "no schedule {}", static_cast<int>(kind));
}

std::string action_text(const Action& action, int chunks) {
  static constexpr const char* kNames[] = {"F", "B", "W", "sf", "rf", "sb", "rb"};
  std::string text = fmt::format("{}{}", kNames[static_cast<size_t>(action.kind)], action.microbatch);
  if (chunks > 1) text += fmt::format(".{}", action.chunk);
  const bool sends = action.kind == kSendForward || action.kind == kSendBackward;
  if (action.peer >= 0) text += fmt::format("{}{}", sends ? '>' : '<', action.peer);
  return text;
}

std::string to_text(const PipelineSchedule& schedule) {
  std::string text = fmt::format("{} {} workers {} microbatches {} chunks\n", config_name(schedule.kind),
                                 schedule.workers, schedule.microbatches, schedule.chunks);
  for (size_t worker = 0; worker < schedule.actions.size(); ++worker) {
    text += fmt::format("{}:", worker);
    for (const Action& action : schedule.actions[worker]) text += " " + action_text(action, schedule.chunks);
    text += "\n";
  }
  return text;
}

}  // namespace flywheel::train
