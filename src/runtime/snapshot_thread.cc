#include <utility>

#include "base/deadline.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/posix.h"
#include "runtime/snapshot_thread_internal.h"

namespace flywheel::runtime {

SnapshotThread::~SnapshotThread() {
  {
    std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void SnapshotThread::submit(WatermarkMessage order, Frozen frozen, int64_t freeze_us) {
  {
    std::scoped_lock lock(mutex_);
    jobs_.push_back({std::move(order), std::move(frozen), freeze_us});
  }
  wake_.notify_all();
}

void SnapshotThread::loop() {
  name_thread("snapshots");
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    const ThreadStopwatch making;
    KeptMessage kept = keep(job);
    kept.make_us = static_cast<int64_t>(making.seconds() * 1e6);
    if (!send_(pack(MessageType::kKept, kept))) return;
  }
}

KeptMessage SnapshotThread::keep(const Job& job) {
  const WatermarkMessage& order = job.order;
  KeptMessage kept;
  kept.from = config_.id;
  kept.epoch = order.epoch;
  kept.watermark = order.watermark;
  kept.freeze_us = job.freeze_us;
  const std::string own = fmt::format("rank-{}", config_.id.rank);
  Result<void> done;
  try {
    auto replicated = std::make_shared<const Rope>(job.frozen.make_replicated());
    auto per_rank = std::make_shared<const Rope>(job.frozen.make_per_rank());
    kept.replicated_digest = replicated->digest();
    kept.replicated_bytes = replicated->size();
    kept.rank_bytes = per_rank->size();
    snapshots_.put(order.watermark, "replicated", replicated);
    snapshots_.put(order.watermark, own, per_rank);
    if (!order.buddy.empty()) {
      done = push_piece(transport_, order.buddy, order.watermark, own, *per_rank, Deadline::after_ms(10'000));
    }
    if (done.ok() && !order.folder.empty()) {  // a full disk does not take what memory has
      const auto written = write_down(order, own, *replicated, *per_rank);
      kept.durable = written.ok();
      if (!written.ok())
        LOG_WARN("watermark {} is in memory only: {}", order.watermark, written.error().message);
    }
  } catch (const std::exception& error) {
    done = make_error(ErrorCode::kUnavailable, "snapshot: {}", error.what());
  }
  if (!done.ok()) kept.error = done.error().to_string();
  return kept;
}

Result<void> SnapshotThread::write_down(const WatermarkMessage& order, const std::string& own,
                                        const Rope& replicated, const Rope& per_rank) const {
  if (order.writes_replicated)
    RETURN_IF_ERROR(write_piece(order.folder + "/replicated", order.watermark, replicated));
  return write_piece(order.folder + "/" + own, order.watermark, per_rank);
}

}  // namespace flywheel::runtime
