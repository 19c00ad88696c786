// What the snapshots of a mesh may cost: a share of the time, whatever one costs.
//
// Each is paid for by the time after it: the next one comes when so much has passed that its cost was the
// share of it. So the costs of any number of them, but for what the last one is still to be paid, are at most
// the share of the time, whether they stay the same, grow or jump. The first one's cost is known by then
// only. A try that failed costs too; it may come before its time, and what it leaves to pay moves those after
// it.
//
// Threads: one at a time. Time is the caller's.
//
//   SnapshotBudget budget(0.02);
//   if (budget.is_due({.since = seconds_since_last, .interval = interval})) budget.begin(seconds_since_last);
//   budget.end(cost_seconds);                       // made or not
#pragma once

#include <algorithm>

namespace flywheel::runtime {

class SnapshotBudget {
 public:
  explicit SnapshotBudget(double share = 1) : share_(share) {}

  // What there is to know of the moment, in seconds.
  struct Moment {
    double since = 0;     // the last snapshot, or the last try, ended
    double interval = 0;  // that is wanted between two
    double retry = 0;     // the last try failed: so long after it the next one comes; 0: it was made
    bool many_calls =
        false;  // so many since then that replaying them would take too long: not later than now
  };
  bool is_due(const Moment& now) const {
    if (now.retry > 0) return now.since >= now.retry;
    return now.since >= paid_after_seconds() && (now.many_calls || now.since >= now.interval);
  }

  // One begins, so many seconds after the last one ended: due, or because somebody wants it now.
  void begin(double since) { since_ = since; }
  // It has cost so many seconds.
  void end(double cost) {
    unpaid_ = std::max(0.0, unpaid_ - since_ * share_) + cost;
    since_ = 0;
    spent_ += cost;
  }

  // So long after the last one ended is it paid for.
  double paid_after_seconds() const { return unpaid_ / share_; }
  double spent_seconds() const { return spent_; }  // by all of them

 private:
  double share_, unpaid_ = 0, spent_ = 0;
  double since_ = 0;  // the time that has paid since the last one, once another one begins
};

}  // namespace flywheel::runtime
