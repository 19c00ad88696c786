// The controller: an ordinary program that opens meshes of workers and calls operations on them.
// docs/runtime.md.
//
// Every call is in the command log before it is sent. When a worker dies, hangs or is cut off, its mesh goes
// back to the last watermark that all ranks have (survivors from their own memory, a replacement from a
// peer's, else everybody from disk) and the calls since then are replayed; the program notices nothing but
// the time it took. When the controller itself dies, the same program started again with the same folder
// finds the log: calls that were made before are matched with it, answered from it where the log has the
// answer, and replayed where not. So a program's calls must follow from its arguments and from what its calls
// returned, in one order: one thread per controller makes calls.
//
//   ASSIGN_OR_RETURN(auto controller, Controller::open({.folder = home + "/runs/tiny-7", .run = "tiny-7"}));
//   ASSIGN_OR_RETURN(Mesh mesh, controller->mesh("train", {{"data", 2}}));
//   mesh.call("train.create", config);
//   for (int64_t step = 0; step < steps; ++step) {
//     Future loss = mesh.call("train.step", args, {.want_value = true, .cursor = step});
//     ASSIGN_OR_RETURN(std::string bytes, loss.get(0));       // rank 0's value
//   }
//   RETURN_IF_ERROR(controller->close());
//
// Ownership: the controller owns its meshes and their processes (the tree is drawn in supervisor.h); Mesh and
// Future are handles on shared state. What fails in one mesh touches no other: when a mesh is given up, its
// workers end, its calls fail, and the others go on.
// Threads: Future from any thread; Controller and Mesh as said above.
// Errors: a call that cannot be made gives a Future that is done with the error (kNotFound, kInvalid). kFull:
// the log cannot be written. kPeerLost: a nondeterministic call whose worker died (it may have run), or a
// call that kills its workers again and again. kDeadline: a call that took longer than it was given. A
// stateful call that failed has happened nowhere: its mesh is rolled back to before it. kCorrupt: a replay
// gave another result than the log has; the mesh is given up.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "runtime/command_log.h"
#include "runtime/launcher.h"
#include "runtime/shape.h"
#include "runtime/supervisor.h"

namespace flywheel::runtime {

struct Core;
struct MeshState;
struct CallState;

struct ControllerOptions {
  std::string folder;  // the run's: commands.log, watermarks/, worker logs
  std::string run;     // its name
  uint64_t seed = 0;   // of every generator key
  LogSync sync = LogSync::kDisk;
  std::shared_ptr<Launcher> launcher;  // default: local processes of this program with the word "worker"
  std::string address;  // reachable by workers on other hosts; empty: unix sockets, this host only
  int port = 0;         // there: this one and the next two; 0: any that are free
  int64_t heartbeat_ms = 100;
  int64_t heartbeat_timeout_ms = 800;     // a worker not heard of for this long is lost
  int64_t start_timeout_ms = 60'000;      // for a new worker to come up and restore
  int64_t lease_ms = 5'000;               // a worker that has not heard of its controller for this long ends
  int64_t watermark_interval_ms = 1'000;  // between snapshots in memory, at least
  int64_t durable_interval_ms = 30'000;   // between those that go to disk as well
  // A snapshot comes before its time after so many (they are replayed), if the last one is paid for.
  uint64_t watermark_max_commands = 20'000;
  // Share of the time that snapshots may take (snapshot_budget.h): freezing, and making the bytes on a core
  // that the next commands might have used.
  double watermark_cost = 0.02;
  // The interval is at least the one of Young's formula (young.h), from what snapshots cost here and from how
  // long a worker is taken to run before it fails; the failures of this controller's life correct that.
  bool young_interval = false;
  double worker_mtbf_hours = 24;
  int64_t log_full_wait_ms = 30'000;   // how long to wait for room on a full disk
  int max_recoveries_per_command = 3;  // then the command is what kills the workers
  // Told of every failure in the tree below this controller, also of those that were mended. From a thread of
  // the controller's; it must not call back. If this process is itself a child in a tree, its owner is told
  // too.
  std::function<void(const Failure&)> on_failure;
};

struct MeshOptions {
  std::vector<Host> hosts;  // ranks are dealt in blocks, and keep copies for each other across hosts; empty:
                            // this machine
  std::map<std::string, std::string> env;  // for its workers
  std::vector<std::string> needs;          // of its workers (operation.h): who lacks one does not come up
  // A command without a result for so long, or for three quarters of its deadline, is asked about: a warning
  // says which rank holds it up and in what (hang.h). Nothing else follows. One that only took long makes it
  // longer. 0: none is asked about for its age.
  int64_t hang_ms = 60'000;
  // Asked ten times a second while its workers start; true: mesh() gives up with kCancelled.
  std::function<bool()> cancelled;
  // A mesh that could not be made whole for so long is closed (Mesh::closed()). 0: it is tried on and on, and
  // after some losses in a row without a result the mesh is given up, which the log does not keep.
  int64_t replace_ms = 0;
  // With it: a worker that is only slow to start is not missing. As long as the process of one lives that has
  // not come up yet, the mesh is waited for so much longer at most; -1: for start_timeout_ms.
  int64_t starting_ms = -1;
  // With it: the mesh is also closed where a worker does not come up at its start, for whatever reason. Else
  // that is an error of Controller::mesh(), as the program or an address may be wrong.
  bool may_lack_workers = false;
};

// Why a mesh takes no calls any more. The log keeps it: who takes the run up meets it at the same call.
struct MeshClosed {
  std::vector<int> missing;  // ranks that nobody could be found for; none: the program closed it
  std::string reason;
  bool replayed = false;  // by an earlier controller
};

struct CallOptions {
  bool want_value = false;     // results come back with the completion, and are logged: small ones
  std::vector<uint64_t> uses;  // earlier commands whose results the operation reads (Future::sequence)
  int64_t cursor = 0;          // place in the data
  int64_t deadline_ms = 600'000;
  std::optional<uint64_t> generator_key;  // default: from the run's seed and the sequence
};

// The result of a call: a reference. Values stay on the workers until asked for, and are dropped there when
// the last handle goes.
class Future {
 public:
  Future() = default;
  bool done() const;
  // Done on every rank of the call; the error of the first rank that failed.
  Result<void> wait(Deadline deadline = Deadline::never()) const;
  // The value of the index-th rank of the call. What is fetched is logged too.
  Result<std::string> get(int index = 0, Deadline deadline = Deadline::never()) const;
  // Digest of every rank's value.
  Result<std::vector<uint64_t>> digests(Deadline deadline = Deadline::never()) const;
  uint64_t sequence() const;
  // Answered by what an earlier controller logged.
  bool replayed() const;
  // Of a call that is done: what the operation itself said on each rank where it failed.
  std::vector<Error> failures() const;

 private:
  friend class Mesh;
  explicit Future(std::shared_ptr<CallState> state) : state_(std::move(state)) {}
  std::shared_ptr<CallState> state_;
};

// Where a mesh found the state that it went back to: nothing is read but from the best of them.
enum class RestoredFrom {
  kBeginning,  // nowhere: all is done again from the first command, as there is no snapshot yet (or none
               // left)
  kMemory,     // each worker's own, and of the lost ones a peer's
  kDisk,       // of all workers, as memory has not all pieces
};

// What a loss of workers cost; of some that came before the first was mended, together.
struct Recovery {
  RestoredFrom from = RestoredFrom::kBeginning;  // the last time, where it went back more than once
  double seconds_to_replay = 0;                  // from the notice until replay was under way
  double seconds = 0;           // until all that had been seen was computed again: the time lost
  double interval_seconds = 0;  // between snapshots, as it was then
  double young_seconds = 0;     // the interval of Young's formula, as it was then; 0: not known
  std::map<std::string, int64_t> done_again;  // calls by operation
};

struct MeshStatus {
  uint64_t epoch = 0, watermark = 0, durable_watermark = 0;
  int recoveries = 0;  // losses that are mended
  Recovery last_recovery;
  double last_recovery_seconds = 0;        // its seconds_to_replay; 0: none
  double last_freeze_seconds = 0;          // how long commands waited for the last snapshot
  double last_watermark_cost_seconds = 0;  // that, and the processor time of making its bytes
  double watermarks_cost_seconds = 0;      // the sum of it over all that this controller has tried
  uint64_t watermarks = 0;
  double watermark_interval_seconds = 0;  // as it is now
  double young_interval_seconds = 0;      // what Young's formula says, used or not; 0: no snapshot yet
  std::vector<int64_t> pids;              // per rank
  std::vector<int64_t> resident_bytes;    // per rank: of main memory, at its last heartbeat; 0: not known
  bool running = false;
  // The rank whose own computation of a command takes longest, over the last eight (pace.h), and how many
  // times as long as the median rank's. -1: not known.
  int slowest_rank = -1;
  double slowest_ratio = 0;
};

// What a run's log tells of the controllers that had it.
struct Lives {
  int taken_up = 0;  // times that a controller went on with what another one had begun, this one included
  // Calls by operation that were computed once more: by the controllers before this one, and by this one to
  // get to where they were. What it does again because of losses is its meshes' (Recovery).
  std::map<std::string, int64_t> done_again;
  std::map<std::string, int64_t> done_again_now;  // of these, by this one
};

class Mesh {
 public:
  Mesh() = default;
  const std::string& name() const;
  const Shape& shape() const;
  // On every rank of this handle: the mesh or a slice of it.
  Future call(const std::string& operation, const std::string& args = "",
              const CallOptions& options = {}) const;
  // The workers with these coordinates: slice({{"data", 0}}).
  Result<Mesh> slice(const std::map<std::string, int>& at) const;
  const std::vector<int>& ranks() const { return ranks_; }
  // Gives these workers up as if they had been lost, for a reason that only the program sees: the mesh
  // recovers with others in their places, and calls that follow are theirs. No call: it is in no log,
  // and changes no result.
  void replace(const std::vector<int>& ranks, const std::string& reason) const;
  // When all calls are done: its workers end, and calls that follow fail. Nothing for one that is closed.
  Result<void> close(const std::string& reason, Deadline deadline) const;
  // A closed mesh's calls fail with kUnavailable; those that were under way have happened nowhere.
  std::optional<MeshClosed> closed() const;
  MeshStatus status() const;

 private:
  friend class Controller;
  Mesh(std::shared_ptr<Core> core, MeshState* mesh, std::vector<int> ranks)
      : core_(std::move(core)), mesh_(mesh), ranks_(std::move(ranks)) {}
  std::shared_ptr<Core> core_;
  MeshState* mesh_ = nullptr;
  std::vector<int> ranks_;
};

class Controller {
 public:
  // kUnavailable: another controller holds the run. kCorrupt: the log is damaged (where, and what to do).
  // kInvalid: the log is another run's.
  static Result<std::unique_ptr<Controller>> open(ControllerOptions options);
  // Without close() the run is left to be taken up again; workers end.
  ~Controller();
  Controller(const Controller&) = delete;
  Controller& operator=(const Controller&) = delete;

  // Starts the workers; returns when all are up and, in a run taken up again, restored. One that was closed
  // before, by this controller or, as the log says, an earlier one, is returned as it is.
  Result<Mesh> mesh(const std::string& name, std::vector<Axis> axes, const MeshOptions& options = {});
  // An earlier controller wrote this log.
  bool resumed() const;
  // When its meshes are open.
  Lives lives() const;
  // Calls now are still matched with what the earlier controller logged.
  bool replaying() const;
  // The program's own child processes, beside its meshes: a sub-controller that evaluates, a data stage. One
  // that escalates fails the run.
  Supervisor& children();
  // What failed so far (the last 1000), with its place in the tree, its cause, and what was done.
  std::vector<Failure> failures() const;
  // A snapshot of every mesh, on disk, now; returns when it is there.
  Result<void> checkpoint(Deadline deadline);
  // Waits for all calls, writes that the run ended, and ends the workers.
  Result<void> close(Deadline deadline = Deadline::after_ms(60'000));

 private:
  explicit Controller(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  std::shared_ptr<Core> core_;
};

}  // namespace flywheel::runtime
