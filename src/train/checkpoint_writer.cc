#include "train/checkpoint_writer.h"

#include <chrono>
#include <utility>

namespace flywheel::train {

CheckpointWriter& CheckpointWriter::of_this_process() {
  static CheckpointWriter writer;
  return writer;
}

void CheckpointWriter::begin(const std::string& folder, std::function<Result<void>()> write) {
  folder_ = folder;
  // What std::async calls lives as long as the future: `write` holds a copy of the model, and goes before.
  last_ =
      std::async(std::launch::async, [before = last_, write = std::move(write)]() mutable -> Result<void> {
        if (before.valid()) std::exchange(before, {}).wait();
        const auto write_once = std::exchange(write, nullptr);
        try {
          return write_once();
        } catch (const std::exception& error) {
          return make_error(ErrorCode::kUnavailable, "{}", error.what());
        }
      }).share();
}

Result<CheckpointInfo> CheckpointWriter::wait(const std::string& folder, Deadline deadline) const {
  if (folder == folder_ && last_.valid()) {
    if (last_.wait_for(std::chrono::milliseconds(deadline.remaining_ms())) != std::future_status::ready) {
      return make_error(ErrorCode::kDeadline, "{} is still being written", folder);
    }
    RETURN_IF_ERROR(last_.get());
  }
  return read_checkpoint_info(folder);
}

}  // namespace flywheel::train
