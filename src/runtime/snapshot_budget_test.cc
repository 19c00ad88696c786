// Snapshots by the rule of the mesh, on a clock that the test moves.
#include "runtime/snapshot_budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/philox.h"
#include "runtime/young.h"

namespace flywheel::runtime {
namespace {

constexpr double kShare = 0.02;
constexpr double kTick = 0.01;  // how often the mesh looks, in seconds

// A mesh that takes snapshots for as long as it is told to.
struct Simulation {
  std::function<double(int)> cost;  // of the n-th try, in seconds
  double interval = 1;              // the least, as a run's config has it
  double mtbf = 0;                  // for Young's formula; 0: without it
  double calls_a_second = 0;        // 20,000 are many
  std::function<bool(int)> is_made = [](int) { return true; };

  double seconds = 0;           // that have passed
  double since = 0, retry = 0;  // as Moment has them
  double last_cost = 0;
  int tries = 0, made = 0;
  SnapshotBudget budget{kShare};

  void run(double until) {
    while (seconds < until) {
      seconds += kTick, since += kTick;
      const double young = young_interval_seconds(last_cost, mtbf);
      const double wanted = std::max(interval, young);
      const bool many = calls_a_second * since >= 20'000;
      if (!budget.is_due({.since = since, .interval = wanted, .retry = retry, .many_calls = many})) continue;
      budget.begin(since);
      const double cost_now = cost(tries);
      budget.end(cost_now);
      since = 0;
      if (is_made(tries++)) {
        ++made, retry = 0, last_cost = cost_now;
      } else {
        retry = retry_seconds(retry, std::max(wanted, budget.paid_after_seconds()));
      }
    }
  }
  // Without what the newest is still to be paid for: it has had no time yet.
  double share() const { return (budget.spent_seconds() - last_cost) / seconds; }
};

// What costs the most, with the least interval that there is.
void expect_bounded(const std::function<double(int)>& cost, const char* what) {
  SCOPED_TRACE(what);
  for (const double calls_a_second : {0.0, 100'000.0}) {
    Simulation mesh{.cost = cost, .interval = 0.05, .calls_a_second = calls_a_second};
    double until = 50;
    while (until < 20'000) {
      mesh.run(until);
      until *= 1.7;
      EXPECT_LE(mesh.share(), kShare) << "after " << mesh.seconds << " s and " << mesh.made << " snapshots";
    }
    EXPECT_GT(mesh.made, 20) << "the bound is no reason to take none";
  }
}

TEST(SnapshotBudget, CostsStayBelowTheirShareOfTheTime) {
  expect_bounded([](int) { return 0.3; }, "constant");
  expect_bounded([](int n) { return 0.02 * std::pow(1.05, n); }, "growing by a twentieth each time");
  expect_bounded([](int n) { return 0.05 * (n + 1); }, "growing by as much each time");
  expect_bounded([](int n) { return 2.0 / (1 + n); }, "dear at first, as memory is fresh");
  expect_bounded([](int n) { return n % 7 == 6 ? 8.0 : 0.01; }, "cheap, and dear all of a sudden");
  Philox rng(5);
  expect_bounded([&](int) { return 0.4 * -std::log(1 - rng.uniform()); }, "noisy");
}

// The bound is used as far as the interval asks for it: no snapshot waits for longer than it must.
TEST(SnapshotBudget, NoMoreIsKeptBackThanTheShare) {
  Simulation dear{.cost = [](int) { return 0.3; }, .interval = 1};
  dear.run(6000);
  EXPECT_NEAR(dear.share(), kShare, kShare / 50) << "every 15 s and a tick";
  Simulation cheap{.cost = [](int) { return 0.01; }, .interval = 10};
  cheap.run(6000);
  EXPECT_NEAR(cheap.made, 600, 2) << "the interval, and nothing else";
  // Of a mesh that fails every 20 minutes: sqrt(2 * 0.3 * 1200), not the 15 s of the bound.
  Simulation young{.cost = [](int) { return 0.3; }, .interval = 1, .mtbf = 1200};
  young.run(6000);
  EXPECT_NEAR(young.made, 6000 / std::sqrt(2 * 0.3 * 1200), 3);
}

// Many short calls bring a snapshot forward, as far as the one before is paid for.
TEST(SnapshotBudget, ManyCallsDoNotPassTheBound) {
  Simulation mesh{.cost = [](int) { return 2.0; }, .interval = 1000, .calls_a_second = 1000};
  mesh.run(10'000);
  EXPECT_LE(mesh.share(), kShare);
  EXPECT_NEAR(mesh.made, 100, 2) << "not every 20 s, and not every 1000";
}

// Tries that fail come soon, and are paid for afterwards.
TEST(SnapshotBudget, FailedTriesArePaidForToo) {
  const auto cost = [](int) { return 1.0; };
  Simulation once{.cost = cost, .is_made = [](int n) { return n != 3; }};
  once.run(157);  // the first after 1 s, then every 50 s
  EXPECT_EQ(once.tries, 5) << "the fourth failed after 151 s, and was tried again 5 s later";
  once.run(156 + 94);
  EXPECT_EQ(once.tries, 5) << "both are paid for after 100 s, of which 5 had passed";
  once.run(156 + 97);
  EXPECT_EQ(once.tries, 6);
  Simulation half{.cost = cost, .is_made = [](int n) { return n % 2 == 1; }};
  half.run(20'000);
  EXPECT_LE(half.share(), kShare * 1.02);
  Simulation never{.cost = cost, .is_made = [](int) { return false; }};
  never.run(20'000);
  EXPECT_LE(never.budget.spent_seconds() / never.seconds, kShare * 1.02);
}

TEST(SnapshotBudget, OneThatSomebodyWantsAtOnceIsPaidForLater) {
  SnapshotBudget budget(kShare);
  budget.begin(0), budget.end(1);
  budget.begin(10), budget.end(1);  // 40 s too early
  EXPECT_DOUBLE_EQ(budget.paid_after_seconds(), 90);
  EXPECT_FALSE(budget.is_due({.since = 89, .interval = 1, .many_calls = true}));
  EXPECT_TRUE(budget.is_due({.since = 90.1, .interval = 1}));
  EXPECT_FALSE(budget.is_due({.since = 90.1, .interval = 200}));
  budget.begin(500), budget.end(2);  // time that was not needed is not saved up
  EXPECT_DOUBLE_EQ(budget.paid_after_seconds(), 100);
  EXPECT_DOUBLE_EQ(budget.spent_seconds(), 4);
}

}  // namespace
}  // namespace flywheel::runtime
