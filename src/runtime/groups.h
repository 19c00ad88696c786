// The communicators of one worker: a group per axis of its mesh, formed at first use in an epoch and given up
// together when the epoch ends.
//
// Threads: get() on the executor's; fence() from any, at any time: what blocks in a group then returns
// kAborted. Pointers from get() are good until the next reset().
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/collectives.h"
#include "runtime/rendezvous.h"
#include "runtime/shape.h"

namespace flywheel::runtime {

class Groups {
 public:
  explicit Groups(Rendezvous& rendezvous) : rendezvous_(rendezvous) {}
  // A new epoch begins: the ranks are at these hosts (equal text: they share memory).
  void reset(Place place, std::vector<std::string> hosts, uint64_t epoch);
  Result<Communicator*> get(const std::string& axis, Deadline deadline);
  // Nothing older than `epoch` counts any more.
  void fence(uint64_t epoch);

 private:
  Rendezvous& rendezvous_;
  std::mutex mutex_;
  Place place_;
  std::vector<std::string> hosts_;
  uint64_t epoch_ = 0, fenced_ = 0;
  std::map<std::string, std::unique_ptr<Communicator>> open_;
};

}  // namespace flywheel::runtime
