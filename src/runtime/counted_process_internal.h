// A worker's process that counts itself among those of its place while it lives. Threads: as launcher.h says.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "runtime/launcher.h"

namespace flywheel::runtime {

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
  std::string last_words() const override { return process_->last_words(); }

 private:
  std::unique_ptr<WorkerProcess> process_;
  std::shared_ptr<int> count_;
};

}  // namespace flywheel::runtime
