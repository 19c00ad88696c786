// How the members of a group find each other before they can talk: each gives a few bytes (its address, its
// host) and gets everybody's, in rank order.
//
// In a worker this goes through the controller (worker.h); a communicator is formed with it and needs no
// address in any configuration. `name` must be the same for all members and new for every exchange: it
// carries the run, mesh, axis, group and epoch, for example "tiny-7/train/data=0..1/e3", so that nothing of
// an epoch that was given up can meet the next one.
//
// Threads: any. Errors: kDeadline when somebody did not come in time, kAborted when abort() ended it or the
// epoch is over, kPeerLost without a controller.
//
//   ASSIGN_OR_RETURN(auto all, rendezvous.exchange("tiny-7/train/data/e3", rank, size, my_address,
//   deadline));
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"

namespace flywheel::runtime {

class Rendezvous {
 public:
  virtual ~Rendezvous() = default;
  virtual Result<std::vector<std::string>> exchange(const std::string& name, int rank, int size,
                                                    const std::string& bytes, Deadline deadline) = 0;
};

// Members that are threads of one process (tests, benchmarks).
class LocalRendezvous : public Rendezvous {
 public:
  Result<std::vector<std::string>> exchange(const std::string& name, int rank, int size,
                                            const std::string& bytes, Deadline deadline) override;

 private:
  struct Meeting {
    std::map<int, std::string> present;
  };
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<std::string, Meeting> meetings_;
};

}  // namespace flywheel::runtime
