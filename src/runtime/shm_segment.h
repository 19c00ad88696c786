// The memory that the ranks of one host share: how it comes to be, who is alive in it, how it is given up.
//
// The segment is a memfd, which has no name: rank 0 makes it and hands the descriptor to the others over a
// unix socket in the abstract name space (same user only). When the last process is gone, however it ended,
// so is the memory. Every member holds a lock on its own byte of the file, which the kernel drops when the
// process dies: that is how the others see a death without asking anybody. Threads: abort() and aborted()
// from any; wait() from many; the rest from one. Errors: kPeerLost when rank 0 is gone before the hand-over;
// kDeadline; kAborted; kIo.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "base/deadline.h"
#include "base/posix.h"
#include "base/result.h"
#include "runtime/collectives.h"
#include "runtime/shm_signal_internal.h"

namespace flywheel::runtime {

class ShmSegment {
 public:
  // Rank 0 makes the memory and listens; the others only remember what they are.
  static Result<std::unique_ptr<ShmSegment>> open(const Group& group, int64_t data_bytes);
  ~ShmSegment();  // leaves: to the others this is no death

  // Where rank 0 listens; empty on the others.
  const std::string& address() const { return address_; }
  // Returns when every rank has mapped the memory and holds its lock.
  Result<void> join(const std::string& leader_address, Deadline deadline);

  // data_bytes of zeroes at first, shared; null before join().
  char* data() const { return data_; }

  // Until `signal`, which rank `peer` raises (-1: all of them), has reached `target`. kAborted when the group
  // was aborted, a member has died, or the peer has left.
  Result<void> wait(ShmSignal& signal, uint32_t target, int peer, Deadline deadline);

  // The first reason wins. Whoever sleeps notices within 10 ms.
  void abort(const std::string& why);
  bool aborted() const;
  Error abort_error() const;

 private:
  struct Header;
  ShmSegment(const Group& group, int64_t data_bytes);
  Result<void> create();
  Result<void> map(int descriptor);
  Result<void> hand_out(Deadline deadline);
  Result<void> receive(const std::string& leader_address, Deadline deadline);
  // The first member that has died, or -1.
  int find_dead() const;
  Result<void> check_alive(Deadline deadline);

  const Group group_;
  const int64_t data_bytes_;
  int64_t mapped_bytes_ = 0;
  int spins_ = 0;
  Descriptor listener_, memory_;
  std::string address_;
  std::atomic<Header*> header_{nullptr};
  char* data_ = nullptr;
  std::atomic<bool> aborted_early_{false};  // abort() before there is a header to say it in
};

}  // namespace flywheel::runtime
