#include "train/pipeline_schedule.h"

#include <gtest/gtest.h>

#include <random>

#include "base/file.h"
#include "base/philox.h"
#include "train/pipeline_drawing.h"
#include "train/pipeline_simulator.h"

namespace flywheel::train {
namespace {

using enum ScheduleKind;

constexpr ScheduleKind kAll[] = {kGPipe, kOneForwardOneBackward, kInterleaved, kZeroBubbleH1, kZeroBubbleV};

std::vector<int> chunks_of(ScheduleKind kind) {
  if (kind == kInterleaved) return {2, 3, 4};
  if (kind == kZeroBubbleH1) return {1, 2, 3};
  return {least_chunks(kind)};
}

// Every size that a schedule has, up to 8 workers and 20 microbatches.
template <typename Visit>
void for_many_sizes(Visit visit) {
  int visited = 0;
  for (const ScheduleKind kind : kAll) {
    for (int p = 1; p <= 8; ++p) {
      for (const int v : chunks_of(kind)) {
        for (int64_t m = 1; m <= 20; ++m) {
          const PipelineSize size{p, m, v};
          if (!can_schedule(kind, size).ok()) continue;
          SCOPED_TRACE(fmt::format("{} p {} m {} v {}", config_name(kind), p, m, v));
          visit(kind, size);
          ++visited;
        }
      }
    }
  }
  EXPECT_GT(visited, 800);
}

TEST(PipelineSchedule, EverySizeIsCompleteFreeOfDeadlockAndWithinItsMemory) {
  for_many_sizes([](ScheduleKind kind, PipelineSize size) {
    const PipelineSchedule schedule = make_schedule(kind, size);
    const Result<void> valid = check(schedule);
    EXPECT_TRUE(valid.ok()) << valid.error().message << "\n" << to_text(schedule);
    const PipelineSchedule sent = with_communication(schedule);
    const Result<void> also = check(sent);
    EXPECT_TRUE(also.ok()) << also.error().message << "\n" << to_text(sent);
  });
}

TEST(PipelineSchedule, LiveActivationsAreWhatTheTableSays) {
  for (int p = 1; p <= 8; ++p) {
    const int64_t m = 4 * p;
    for (int r = 0; r < p; ++r) {
      const auto live = [&](ScheduleKind kind, int v) {
        return peak_live(make_schedule(kind, {p, m, v}))[static_cast<size_t>(r)];
      };
      EXPECT_EQ(live(kGPipe, 1), m);
      EXPECT_EQ(live(kOneForwardOneBackward, 1), p - r);
      EXPECT_EQ(live(kInterleaved, 3), 2 * p + 2 * (p - 1 - r) + 1);
      EXPECT_EQ(live(kZeroBubbleH1, 1), p);
      EXPECT_LE(live(kZeroBubbleV, 2), 2 * p);
    }
  }
}

TEST(PipelineSchedule, WhatWaitsForItsWeightActionIsWhatIsPromised) {
  for_many_sizes([](ScheduleKind kind, PipelineSize size) {
    const PipelineSchedule schedule = make_schedule(kind, size);
    for (int worker = 0; worker < size.workers; ++worker) {
      int64_t waiting = 0, most = 0;
      for (const Action& action : schedule.actions[static_cast<size_t>(worker)]) {
        if (!schedule.splits_backward) break;
        if (action.kind == ActionKind::kBackward) most = std::max(most, ++waiting);
        if (action.kind == ActionKind::kWeight) --waiting;
      }
      const int64_t promised = max_waiting(kind, size, worker);
      EXPECT_LE(most, promised) << worker << "\n" << to_text(schedule);
      // A V with fewer microbatches than its pattern is made for leaves some out.
      if (kind != kZeroBubbleV || size.microbatches >= 2 * size.workers - 1) {
        EXPECT_EQ(most, promised) << worker << "\n" << to_text(schedule);
      }
    }
  });
}

TEST(PipelineSchedule, BubbleIsTheFormulas) {
  for_many_sizes([](ScheduleKind kind, PipelineSize size) {
    const Timeline timeline = simulate(make_schedule(kind, size), {}).value();
    const double formula = bubble_formula(kind, size);
    const bool exact = size.chunks == 1       ? kind != kZeroBubbleH1 || size.microbatches >= size.workers
                       : kind == kZeroBubbleV ? size.microbatches >= 2 * size.workers - 1
                                              : size.microbatches % size.workers == 0;
    if (exact) {
      EXPECT_NEAR(timeline.bubble(), formula, 1e-9);
    } else {
      EXPECT_GE(timeline.bubble(), formula - 1e-9);
    }
    if (kind == kGPipe || kind == kOneForwardOneBackward) {
      const double p = size.workers, m = static_cast<double>(size.microbatches);
      EXPECT_NEAR(1 - timeline.busy_seconds[0] / timeline.seconds, (p - 1) / (m + p - 1), 1e-9);
    }
  });
}

// The same whatever a forward costs beside a backward.
TEST(PipelineSchedule, BubbleOf1f1bAndInterleavedDoesNotDependOnTheCosts) {
  Philox rng(std::random_device{}());
  for (int round = 0; round < 40; ++round) {
    const int p = 1 + static_cast<int>(rng.below(8)), v = 1 + static_cast<int>(rng.below(4));
    const int64_t m = p * (1 + static_cast<int64_t>(rng.below(5)));
    const StageCost cost{
        .forward = 0.2 + rng.uniform(), .backward = 0.2 + rng.uniform(), .weight = rng.uniform()};
    const ScheduleKind kind = v == 1 ? kOneForwardOneBackward : kInterleaved;
    SCOPED_TRACE(
        fmt::format("p {} m {} v {} costs {} {} {}", p, m, v, cost.forward, cost.backward, cost.weight));
    const Timeline timeline = simulate(make_schedule(kind, {p, m, v}), {.stages = {cost}}).value();
    EXPECT_NEAR(timeline.bubble(), bubble_formula(kind, {p, m, v}), 1e-9);
  }
}

// Random schedules by the rules of the house are played by an independent, slow rule: time goes in small
// steps, and each worker begins its next action when a look at all others says that its input is there.
TEST(PipelineSchedule, SimulatorAgreesWithTimeInSmallSteps) {
  Philox rng(std::random_device{}());
  for (int round = 0; round < 60; ++round) {
    const ScheduleKind kind = kAll[rng.below(5)];
    const int p = 1 + static_cast<int>(rng.below(5));
    const PipelineSize size{p, p * (1 + static_cast<int64_t>(rng.below(3))), 0};
    const PipelineSchedule s = make_schedule(kind, size);
    PipelineCosts costs{.stages = {}, .send_seconds = static_cast<double>(rng.below(3))};
    for (int stage = 0; stage < s.stages(); ++stage) {
      const auto whole = [&] { return static_cast<double>(1 + rng.below(4)); };
      costs.stages.push_back({.forward = whole(), .backward = whole(), .weight = whole()});
    }
    const Timeline timeline = simulate(s, costs).value();
    struct Running {
      size_t next = 0;
      double until = 0;
    };
    std::vector<Running> workers(static_cast<size_t>(p));
    std::map<std::tuple<int, int64_t, int>, double> ended;  // kind, microbatch, stage
    double end = 0;
    for (int tick = 0; tick < 10000; ++tick) {
      const double now = tick;
      for (int w = 0; w < p; ++w) {
        Running& worker = workers[static_cast<size_t>(w)];
        const auto& list = s.actions[static_cast<size_t>(w)];
        if (worker.next == list.size() || worker.until > now) continue;
        const Action a = list[worker.next];
        const int stage = s.stage_of(w, a.chunk);
        const auto there = [&](ActionKind what, int other) {
          const auto it = ended.find({static_cast<int>(what), a.microbatch, other});
          return it != ended.end() && it->second + (s.worker_of(other) == w ? 0 : costs.send_seconds) <= now;
        };
        const bool ready = a.kind == ActionKind::kForward
                               ? stage == 0 || there(ActionKind::kForward, stage - 1)
                           : a.kind == ActionKind::kWeight
                               ? there(ActionKind::kBackward, stage)
                               : there(ActionKind::kForward, stage) &&
                                     (stage + 1 == s.stages() || there(ActionKind::kBackward, stage + 1));
        if (!ready) continue;
        const StageCost& c = costs.stages[static_cast<size_t>(stage)];
        const double takes = a.kind == ActionKind::kForward  ? c.forward
                             : a.kind == ActionKind::kWeight ? c.weight
                             : s.splits_backward             ? c.backward
                                                             : c.backward + c.weight;
        worker.until = now + takes;
        ended[{static_cast<int>(a.kind), a.microbatch, stage}] = worker.until;
        end = std::max(end, worker.until);
        ++worker.next;
      }
    }
    EXPECT_DOUBLE_EQ(timeline.seconds, end) << to_text(s);
  }
}

TEST(PipelineSchedule, PeakMemoryFollowsTheStages) {
  const PipelineSchedule s = make_schedule(kOneForwardOneBackward, {.workers = 3, .microbatches = 6});
  const Timeline t =
      simulate(s, {.stages = {{.activations = 10}, {.activations = 20}, {.activations = 40}}}).value();
  EXPECT_EQ(t.peak_bytes, (std::vector<double>{30, 40, 40}));
  const PipelineSchedule z = make_schedule(kZeroBubbleH1, {.workers = 3, .microbatches = 6});
  const Timeline whole = simulate(z, {.stages = {{.activations = 10, .kept_for_weight = 10}}}).value();
  EXPECT_EQ(whole.peak_bytes, (std::vector<double>{30, 30, 30}));
  const Timeline part = simulate(z, {.stages = {{.activations = 10, .kept_for_weight = 4}}}).value();
  EXPECT_EQ(part.peak_bytes[2], 10 + 4 + 4);  // two wait for their weight action while one is live
}

// Break a good schedule in every way that check() names.
TEST(PipelineSchedule, CheckNamesWhatIsWrong) {
  const PipelineSchedule good = make_schedule(kZeroBubbleH1, {.workers = 3, .microbatches = 4});
  const auto says = [&](auto change) {
    PipelineSchedule bad = good;
    change(bad);
    const Result<void> result = check(bad);
    return result.ok() ? "nothing" : result.error().message;
  };
  EXPECT_EQ(says([](auto& s) { s.actions[1].pop_back(); }), "worker 1: W3 is missing");
  EXPECT_EQ(says([](auto& s) { s.actions[1].push_back(s.actions[1].back()); }), "worker 1: W3 comes twice");
  EXPECT_EQ(says([](auto& s) { s.actions[0][0].microbatch = 4; }),
            "worker 0: F4 is outside of 4 microbatches and 1 chunks");
  EXPECT_EQ(says([](auto& s) { std::swap(s.actions[2][0], s.actions[2][1]); }),
            "worker 2: B0 comes before its F0");
  EXPECT_EQ(says([](auto& s) { s.actions.pop_back(); }), "2 lists of actions for 3 workers");
  // Both lists are in order by themselves, and yet wait for each other.
  EXPECT_EQ(says([](auto& s) {
              auto& list = s.actions[2];
              std::ranges::stable_sort(list, {}, [](const Action& a) { return a.microbatch != 3; });
            }).substr(0, 36),
            "deadlock: worker 0 waits for ever be");
  // All forwards first is a schedule, but takes more memory than this kind promises.
  EXPECT_EQ(says([](auto& s) {
              for (auto& list : s.actions)
                std::ranges::stable_sort(list, {}, [](const Action& a) { return a.kind; });
            }),
            "worker 0: 4 activations are live at once; zb-h1 promises 3");
  // Sends in another order than the receives.
  PipelineSchedule sent = with_communication(make_schedule(kGPipe, {.workers = 2, .microbatches = 2}));
  ASSERT_TRUE(check(sent).ok());
  std::vector<Action>& list = sent.actions[1];
  std::vector<size_t> receives;
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].kind == ActionKind::kReceiveForward) receives.push_back(i);
  }
  std::rotate(list.begin() + static_cast<std::ptrdiff_t>(receives[0]),
              list.begin() + static_cast<std::ptrdiff_t>(receives[1]),
              list.begin() + static_cast<std::ptrdiff_t>(receives[1]) + 1);
  EXPECT_EQ(check(sent).error().message, "worker 0: sf0>1 waits for ever: a deadlock");
}

TEST(PipelineSchedule, RefusesSizesByName) {
  EXPECT_THROW(make_schedule(kGPipe, {.workers = 2, .microbatches = 2, .chunks = 2}), UserError);
  EXPECT_THROW(make_schedule(kZeroBubbleV, {.workers = 2, .microbatches = 2, .chunks = 3}), UserError);
  EXPECT_THROW(make_schedule(kInterleaved, {.workers = 2, .microbatches = 2, .chunks = 1}), UserError);
  EXPECT_THROW(make_schedule(kGPipe, {.workers = 0, .microbatches = 2}), UserError);
  EXPECT_THROW(make_schedule(kGPipe, {.workers = 2, .microbatches = 0}), UserError);
  EXPECT_THROW(make_schedule(kGPipe, {.workers = 4096, .microbatches = 1 << 20}), UserError);
  try {
    make_schedule(kInterleaved, {.workers = 4, .microbatches = 9, .chunks = 2});
    FAIL();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("12 do"), std::string::npos) << error.what();
  }
}

// testdata/schedules: a line of input, then what is drawn. For people to read, and to add to.
TEST(PipelineSchedule, Golden) {
  const std::string folder = std::string(FLYWHEEL_ROOM_DIR) + "/testdata/schedules";
  const std::vector<std::string> names = list_folder(folder).value();
  ASSERT_GE(names.size(), 5u);
  for (const std::string& name : names) {
    const std::string text = read_file(folder + "/" + name).value();
    std::istringstream lines(text);
    std::string word, kind_name;
    PipelineSize size;
    lines >> kind_name >> word >> size.workers >> word >> size.microbatches >> word >> size.chunks;
    ScheduleKind kind = kGPipe;
    for (const auto& [known, value] : ConfigEnum<ScheduleKind>::names) {
      if (kind_name == known) kind = value;
    }
    const PipelineSchedule schedule = make_schedule(kind, size);
    const Timeline timeline = simulate(schedule, {}).value();
    std::string drawn = fmt::format("{} workers {} microbatches {} chunks {}\n\n", kind_name, size.workers,
                                    size.microbatches, size.chunks);
    drawn += draw_terminal(schedule, timeline, 220) + "\n" + describe_timeline(schedule, timeline) + "\n\n";
    drawn += to_text(with_communication(schedule));
    EXPECT_EQ(drawn, text) << name;
  }
}

TEST(PipelineSchedule, SvgHoldsEveryAction) {
  const PipelineSchedule schedule = make_schedule(kZeroBubbleV, {.workers = 4, .microbatches = 8});
  const std::string svg = draw_svg(schedule, simulate(schedule, {}).value());
  size_t titles = 0;
  for (size_t i = svg.find("<title>"); i != std::string::npos; i = svg.find("<title>", i + 1)) ++titles;
  EXPECT_EQ(titles, 3u * 8 * 8);
  EXPECT_TRUE(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
}

}  // namespace
}  // namespace flywheel::train
