// Writes checkpoints beside the training, one after the other, for all of a worker's process.
//
// What the disk answered is no part of a worker's state and of no deterministic result: a replay may meet a
// disk with more room, or with less.
//
// Threads: the worker's (the one that runs operations); futures anywhere. Errors: those of the write.
//
//   CheckpointWriter& writer = CheckpointWriter::of_this_process();
//   writer.begin(folder, [=] { return write_checkpoint(folder, ...); });          // returns at once
//   ASSIGN_OR_RETURN(const CheckpointInfo info, writer.wait(folder, deadline));   // it is on disk
#pragma once

#include <functional>
#include <future>
#include <string>

#include "base/deadline.h"
#include "base/result.h"
#include "train/checkpoint.h"

namespace flywheel::train {

class CheckpointWriter {
 public:
  using Over = std::shared_future<Result<void>>;
  static CheckpointWriter& of_this_process();

  // `write` runs on a thread of its own when the one before is over, and is destroyed then with all it holds.
  void begin(const std::string& folder, std::function<Result<void>()> write);
  // The checkpoint of that folder, once it is on disk, or why it is not there. kDeadline.
  Result<CheckpointInfo> wait(const std::string& folder, Deadline deadline) const;
  // The last one begun; not valid() before the first.
  Over last() const { return last_; }

 private:
  std::string folder_;  // of the last one
  Over last_;
};

}  // namespace flywheel::train
