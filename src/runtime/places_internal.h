// What launchers share that choose among several places. Threads: as launcher.h says.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/launcher.h"

namespace flywheel::runtime {

struct PlaceState {
  bool usable = true;
  int failed = 0;   // starts that did not come up
  int workers = 0;  // there now
};
// Which of them is to take a worker: the one that failed least, of these the one with the fewest workers.
inline std::optional<size_t> best_place(const std::vector<PlaceState>& places) {
  std::optional<size_t> best;
  const auto badness = [&](size_t i) { return std::pair(places[i].failed, places[i].workers); };
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i].usable && (!best || badness(i) < badness(*best))) best = i;
  }
  return best;
}

// A worker's process that counts itself among those of its place while it lives.
class CountedProcess : public WorkerProcess {
 public:
  CountedProcess(std::unique_ptr<WorkerProcess> process, std::shared_ptr<int> count)
      : process_(std::move(process)), count_(std::move(count)) {
    ++*count_;
  }
  ~CountedProcess() override { --*count_; }
  std::string describe() const override { return process_->describe(); }
  std::optional<ExitStatus> ended() override { return process_->ended(); }
  int exit_fd() const override { return process_->exit_fd(); }
  void kill() override { process_->kill(); }
  bool stopped() const override { return process_->stopped(); }
  std::string last_words() const override { return process_->last_words(); }

 private:
  std::unique_ptr<WorkerProcess> process_;
  std::shared_ptr<int> count_;
};

}  // namespace flywheel::runtime
