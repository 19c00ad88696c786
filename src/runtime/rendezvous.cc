#include "runtime/rendezvous.h"

#include <chrono>

namespace flywheel::runtime {

Result<std::vector<std::string>> LocalRendezvous::exchange(const std::string& name, int rank, int size,
                                                           const std::string& bytes, Deadline deadline) {
  CHECK(rank >= 0 && rank < size, "rank {} of {}", rank, size);
  std::unique_lock lock(mutex_);
  Meeting& meeting = meetings_[name];
  if (!meeting.present.emplace(rank, bytes).second) {
    return make_error(ErrorCode::kExists, "rank {} came to {} twice", rank, name);
  }
  arrived_.notify_all();
  const auto complete = [&] { return meeting.present.size() == static_cast<size_t>(size); };
  while (!complete()) {
    if (deadline.expired()) {
      return make_error(ErrorCode::kDeadline, "{} of {} members came to {} in time", meeting.present.size(),
                        size, name);
    }
    arrived_.wait_for(lock, std::chrono::milliseconds(std::min<int64_t>(deadline.remaining_ms() + 1, 100)));
  }
  std::vector<std::string> all;
  for (const auto& [who, what] : meeting.present) all.push_back(what);
  return all;
}

}  // namespace flywheel::runtime
