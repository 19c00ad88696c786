// For tests: forked processes, one for each rank, that form groups and run collectives.
//
//   run_group(4, [](Communicator& comm, TestPeers& peers) { EXPECT_TRUE(comm.run(Barrier{}, soon()).ok());
//   });
//
// Expectations work in the children: what fails there is printed there and fails the test here.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/collectives.h"

namespace flywheel::runtime {

inline Deadline soon() {
  return Deadline::after_ms(20'000);
}

// A group on one host; with `hosts`, rank r is on hosts[r].
inline Group test_group(int rank, int size, uint64_t epoch = 1, std::vector<std::string> hosts = {}) {
  if (hosts.empty()) hosts.assign(static_cast<size_t>(size), "127.0.0.1");
  return {.name = "test", .epoch = epoch, .rank = rank, .hosts = std::move(hosts), .key = "of the test"};
}

// What the processes of a test share: a board for endpoints, and counters.
class TestPeers {
 public:
  static constexpr int kMaxRanks = 16;

  TestPeers() {
    void* memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap");
    board_ = static_cast<Board*>(memory);
  }
  ~TestPeers() { munmap(board_, sizeof(Board)); }
  TestPeers(const TestPeers&) = delete;
  TestPeers& operator=(const TestPeers&) = delete;

  std::atomic<int64_t>& counter(int index) { return board_->counters[index]; }
  std::atomic<int>& process_id(int rank) { return board_->process_ids[rank]; }

  // Puts up one's endpoint of an epoch (at most 15) and gets everybody's.
  std::vector<std::string> exchange(uint64_t epoch, int rank, int size, const std::string& endpoint) {
    Note* notes = board_->notes[epoch];
    CHECK(epoch < 16 && endpoint.size() <= sizeof(Note::bytes), "endpoint of {} bytes", endpoint.size());
    std::memcpy(notes[rank].bytes, endpoint.data(), endpoint.size());
    notes[rank].size.store(static_cast<int>(endpoint.size()));
    std::vector<std::string> all;
    const Deadline deadline = soon();
    for (int r = 0; r < size; ++r) {
      while (notes[r].size.load() == 0) {
        CHECK(!deadline.expired(), "rank {} put up no endpoint", r);
        usleep(200);
      }
      all.emplace_back(notes[r].bytes, static_cast<size_t>(notes[r].size.load()));
    }
    return all;
  }

  std::unique_ptr<Communicator> form(const Group& group) {
    auto comm = Communicator::open(group);
    if (!comm.ok()) ADD_FAILURE() << comm.error().to_string();
    if (!comm.ok()) return nullptr;
    auto connected = comm.value()->connect(
        exchange(group.epoch, group.rank, group.size(), comm.value()->endpoint()), soon());
    EXPECT_TRUE(connected.ok()) << connected.error().to_string();
    return std::move(comm).value();
  }
  Result<void> reform(Communicator& comm, const Group& group) {
    RETURN_IF_ERROR(comm.reopen(group));
    return comm.connect(exchange(group.epoch, group.rank, group.size(), comm.endpoint()), soon());
  }

 private:
  struct Note {
    std::atomic<int> size;
    char bytes[4092];
  };
  struct Board {
    std::atomic<int64_t> counters[16];
    std::atomic<int> process_ids[kMaxRanks];
    Note notes[16][kMaxRanks];
  };
  Board* board_;
};

// Forks `size` children that run `body`; kills what has not ended after `limit_s`. Ranks in `expected_dead`
// are to die by SIGKILL, the others to end with every expectation met.
inline void run_processes(int size, const std::function<void(int rank, TestPeers& peers)>& body,
                          int limit_s = 60, const std::vector<int>& expected_dead = {}) {
  TestPeers peers;
  fflush(nullptr);
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) {
    const pid_t child = fork();
    CHECK(child >= 0, "fork");
    if (child == 0) {
      peers.process_id(rank).store(getpid());
      body(rank, peers);
      fflush(nullptr);
      _exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    children.push_back(child);
  }
  const Deadline limit = Deadline::after_ms(limit_s * 1000);
  for (int rank = 0; rank < size; ++rank) {
    const pid_t child = children[static_cast<size_t>(rank)];
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {
      if (limit.expired()) {
        ADD_FAILURE() << "rank " << rank << " had not ended after " << limit_s << " s";
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        break;
      }
      usleep(500);
    }
    if (std::find(expected_dead.begin(), expected_dead.end(), rank) != expected_dead.end()) {
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
          << "rank " << rank << " was to be killed";
    } else {
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
          << "rank " << rank << " ended with status " << status;
    }
  }
}

inline void run_group(int size, const std::function<void(Communicator& comm, TestPeers& peers)>& body,
                      const std::vector<std::string>& hosts = {}) {
  run_processes(size, [&](int rank, TestPeers& peers) {
    auto comm = peers.form(test_group(rank, size, 1, hosts));
    if (comm) body(*comm, peers);
  });
}

}  // namespace flywheel::runtime
