// Inside the controller. Reading order: controller.cc (from open to close), calls.cc, controller_loop.cc
// (what workers say), recovery.cc (losses, rollback, replay), mesh_close.cc, watermarks.cc, watch_hangs.cc.
//
// Threads. `mutex` guards everything here but what is marked. The loop thread alone starts and ends worker
// processes (their death signal follows it), reads the sockets and sends on `control`. The workers' lines
// are sent on by whoever holds `mutex`: a lone call goes out from the caller's own thread, a group from the
// log's thread once it is durable.
#pragma once

#include <zmq.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/file_lock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "runtime/controller.h"
#include "runtime/hang.h"
#include "runtime/history.h"
#include "runtime/lines.h"
#include "runtime/pace.h"
#include "runtime/snapshot_budget.h"
#include "runtime/socket_folder.h"
#include "runtime/transport.h"
#include "runtime/worker.h"

namespace flywheel::runtime {

struct CallState {
  Core* core = nullptr;
  MeshState* mesh = nullptr;
  Command command;
  std::vector<int> ranks;
  uint64_t log_position = 0;      // durable up to here: may be sent
  std::vector<Outcome> outcomes;  // per rank of the call
  std::vector<uint8_t> have;      // which of them are there
  size_t missing = 0;             // how many are not
  std::vector<Outcome> expected;  // what the log says, when this is a replay
  std::optional<Error> error;
  bool complete = false;          // all outcomes are in (or it has failed) and logged
  std::atomic<bool> done{false};  // the program may see it; set under `mutex`
  bool dispatched = false;        // sent at least once: it may have run
  bool failed_for_good = false;   // with `error`: decided without its workers, not tried again
  bool replayed = false;
  int kills = 0;  // workers that died with it under way
};

struct Fetch {
  std::shared_ptr<CallState> call;
  size_t index = 0;
  std::optional<Outcome> outcome;
};

struct WorkerState {
  WorkerId id;
  Host host;
  std::string identity, peer_endpoint;
  int failed_starts = 0;                   // in a row
  std::unique_ptr<WorkerProcess> process;  // the loop thread's
  int64_t pid = 0;
  int control_fd = -1;  // of its control connection, to know it when that closes
  std::optional<Stopwatch> closed_since;
  bool hello = false, rollback_sent = false, restored = false;
  int64_t silent_ms = 0;  // not heard of for so long (counted only while the loop runs)
  Deadline start_by = Deadline::never();
  std::optional<Deadline> start_again;  // it could not be started: the next try
  uint64_t next_result = 0;             // where in the tail its next result probably is
  int64_t resident_bytes = 0;
};

struct MeshState {
  enum class Phase { kRestoring, kRunning, kFailed };
  uint32_t id = 0;
  std::string name;
  Shape shape;
  MeshOptions options;
  Phase phase = Phase::kRestoring;
  std::optional<Error> failed;
  std::optional<MeshCloseRecord> closed;  // with `failed`
  std::vector<WorkerState> workers;
  int buddy_step = 1;  // rank r's own piece is also with rank r + buddy_step
  int buddy_of(int rank) const { return (rank + buddy_step) % shape.size(); }
  int buddy_for(int rank) const { return (rank + shape.size() - buddy_step) % shape.size(); }
  bool ran = false;         // all workers were up once
  int failed_starts = 0;    // before that
  Stopwatch unready_since;  // that it is not running, while it is not
  // Whether the mesh may go without workers that cannot be had: it is then closed.
  bool may_lack() const { return options.replace_ms > 0 && (ran || options.may_lack_workers); }
  uint64_t epoch = 0, epoch_position = 0;

  // Calls after `trimmed`, oldest first; [next_dispatch] is the first that was not sent in this epoch.
  std::deque<std::shared_ptr<CallState>> tail;
  uint64_t tail_base = 0;           // how many were trimmed: absolute index of tail[0]
  uint64_t next_dispatch = 0;       // absolute
  uint64_t first_incomplete = 0;    // absolute; everything before is complete
  uint64_t last_dispatched = 0;     // sequence
  Stopwatch oldest_since;           // how long the first incomplete call has been that
  std::optional<Deadline> suspect;  // something failed that a loss may explain: recover then at the latest
  std::deque<std::pair<uint64_t, uint64_t>> releases;  // (after this sequence was sent, drop this result)
  std::vector<uint64_t> released;                      // since the watermark: dropped again after a replay
  size_t released_before_making = 0;

  uint64_t watermark = 0, restore_point = 0, durable = 0;
  std::map<std::string, std::set<uint64_t>> holders;  // of the watermark's pieces, by incarnation
  uint64_t making = 0;                                // the watermark under way
  bool making_durable = false, want_durable = false;
  std::map<int, KeptMessage> kept;
  Stopwatch since_watermark, since_durable, making_since;
  double retry_after = 0;     // seconds: when a watermark that was not made is tried again; 0: none failed
  double freeze_seconds = 0;  // of the last snapshot: commands waited
  double cost_seconds = 0;    // that, and the processor time of making its bytes
  SnapshotBudget budget;      // of what all of them cost
  uint64_t dispatched_since_watermark = 0, watermarks = 0;
  std::vector<uint64_t> durable_on_disk;  // those that can be had, oldest first; `durable` is the last
  std::vector<uint64_t> unusable;         // on disk too, but they could not be restored

  int recoveries = 0, fruitless = 0;  // fruitless: in a row, without a call completing between
  bool restore_failed = false;        // memory would not do: from disk next time
  bool from_disk = false;             // where the restore point is
  Stopwatch up_since;
  struct CatchUp {  // after a loss, until all that the program had seen is computed again
    Stopwatch since;
    int losses = 0;       // so far: more may come on the way
    uint64_t target = 0;  // the last call that has to be; 0: none
    size_t missing = 0;   // ranks that have not answered it again
    Recovery recovery;
  };
  std::optional<CatchUp> catch_up;
  Recovery last_recovery;

  struct Inquiry {  // under way: what does each worker do?
    uint64_t number = 0;
    bool of_silence = false;  // a worker is silent; else a command is old
    Hang hang;
    Deadline until = Deadline::never();
  };
  std::optional<Inquiry> inquiry;
  uint64_t asked_about = 0;  // the last command with a finding, in this epoch
  int64_t hang_ms = 0;       // older commands are asked about
  Paces paces;
  std::vector<Gauge*> pace_gauges;  // by rank
  int slowest_rank = -1;            // -1: not known
  double slowest_ratio = 0;
  int straggler = -1;                        // was told of; -1: there is none
  std::optional<Stopwatch> since_straggler;  // since one was told of
};

inline Error closed_error(const std::string& mesh, const std::string& reason) {
  return make_error(ErrorCode::kUnavailable, "mesh {} is closed: {}", mesh, reason);
}

struct Core : std::enable_shared_from_this<Core> {
  ControllerOptions options;
  std::string log_path;
  FileLock run_lock;
  History history;
  std::unique_ptr<Transport> transport;
  SocketFolder sockets;
  std::unique_ptr<Lines> lines;
  std::atomic<bool> lines_changed{false};  // what the loop waits for is to be put together anew
  Socket control;
  zmq::socket_t monitor;
  int wake = -1;
  std::thread loop_thread;

  std::mutex mutex;
  std::condition_variable changed;
  std::atomic<int> waiters{0};
  std::vector<std::shared_ptr<CallState>>
      finished;  // by settle(); the loop shows them once it let go of `mutex`
  std::atomic<bool> stop{false};
  bool processes_changed = true;  // the same, of the loop thread's own doing
  std::optional<Error> failed;    // of the whole run: nothing more can be logged
  std::unique_ptr<CommandLog> log;
  uint64_t durable_position = 0;
  uint64_t next_sequence = 1, next_incarnation = 1;
  std::list<MeshState> meshes;
  std::deque<std::pair<uint64_t, std::shared_ptr<CallState>>> await_durable;
  std::list<std::shared_ptr<Fetch>> fetches;
  struct Meeting {
    uint32_t mesh = 0;
    std::map<int, std::pair<std::string, std::string>> present;  // rank in group -> identity, bytes
  };
  std::map<std::string, Meeting> meetings;
  std::deque<std::function<void()>> posted;  // for the loop thread, run under `mutex`
  std::unique_ptr<Supervisor> children;
  uint64_t next_inquiry = 1;
  std::thread hang_writer;          // of the last finding; the loop thread's
  std::deque<Failure> failures;     // of the tree below
  std::vector<Failure> unreported;  // the loop tells of them once it let go of `mutex`

  ~Core();
  // controller.cc
  void shutdown();
  Result<void> start();
  void take_up(MeshState& mesh, const LoggedMesh& before);
  std::string path() const;  // in the tree
  std::string path(const MeshState& mesh) const;
  std::string path(const MeshState& mesh, int rank) const;
  void note(Failure failure);
  // calls.cc
  std::shared_ptr<CallState> issue(MeshState& mesh, const std::vector<int>& ranks,
                                   const std::string& operation, const std::string& args,
                                   const CallOptions& call);
  Result<Outcome> fetch(const std::shared_ptr<CallState>& call, size_t index, Deadline deadline);
  void release(CallState& call);
  // Waits for `ready` under `lock`, until the deadline.
  template <typename Ready>
  Result<void> wait(std::unique_lock<std::mutex>& lock, Deadline deadline, const char* what, Ready ready) {
    Result<void> result;
    ++waiters;  // before looking: who finishes something looks here after saying so
    while (!ready()) {
      if (deadline.expired()) {
        result = make_error(ErrorCode::kDeadline, "{} took longer than it was given", what);
        break;
      }
      changed.wait_for(lock, std::chrono::milliseconds(std::min<int64_t>(deadline.remaining_ms() + 1, 200)));
    }
    --waiters;
    return result;
  }
  template <typename T>
  uint64_t record(RecordType type, const T& body) {
    std::string bytes;
    append_record(bytes, type, body);
    return log->append(bytes);
  }

  // controller_loop.cc, loop thread; `mutex` is held in the on_ functions
  void poke() const;
  void post(std::function<void()> task);
  struct Awaited {
    std::vector<zmq::pollitem_t> items;  // wake, control, monitor; the lines'; the processes'
    size_t lines_end = 0;
  };
  Awaited what_to_await();
  void loop();
  void on_child_failure(const Failure& failure);
  void fail_run(const Error& error);
  void on_failure(const FailureMessage& message);
  void on_log_durable(uint64_t position);
  void on_log_failed(const Error& error);
  void on_result(std::string_view message);
  void on_completions(std::string_view body);
  void on_control(const std::string& identity, zmq::message_t& message);
  void on_line_closed(const std::string& identity);
  void on_hello(const std::string& identity, const HelloMessage& hello, int fd);
  void on_meet(const std::string& identity, MeetMessage meet);
  void tick(int64_t elapsed_ms);
  std::string how_it_ended(const WorkerState& worker, const ExitStatus& status) const;
  bool cannot_start(MeshState& mesh, const WorkerState& worker, const ExitStatus& status);
  // True while a mesh is restoring, which is looked at more often.
  bool turn(const Awaited& awaited, bool busy, Stopwatch& since_tick);
  void show_finished();
  void tell_failures();
  WorkerState* find_worker(const WorkerId& id, MeshState** mesh);

  // dispatch.cc, `mutex` held
  void dispatch(MeshState& mesh);
  void take_outcome(MeshState& mesh, CallState& call, int rank, Outcome outcome);
  void finish(MeshState& mesh, const std::shared_ptr<CallState>& call);
  void settle(MeshState& mesh);
  void fail_mesh(MeshState& mesh, const Error& error);
  void send_fetch(const Fetch& fetch);
  CallState* find_call(MeshState& mesh, WorkerState& worker, uint64_t sequence);

  // recovery.cc, loop thread, `mutex` held
  void recover(MeshState& mesh, const std::set<int>& lost, const std::string& reason);
  void start_worker(MeshState& mesh, int rank);
  void advance(MeshState& mesh);
  bool choose_restore_point(MeshState& mesh);
  void give_up_durable(MeshState& mesh, const std::string& why);
  void find_durable(MeshState& mesh) const;
  Result<void> reload_tail(MeshState& mesh, uint64_t from);
  RollbackMessage rollback_for(MeshState& mesh, const WorkerState& worker);
  void on_restored(const RestoredMessage& restored);
  std::shared_ptr<CallState> from_history(MeshState& mesh, const LoggedCall& logged);
  void note_loss(MeshState& mesh);
  void aim_catch_up(MeshState& mesh);
  void end_catch_up(MeshState& mesh);

  // mesh_close.cc, `mutex` held; loop thread but for close_mesh()
  void start_later(MeshState& mesh, WorkerState& worker, const std::string& why);
  void close_mesh(MeshState& mesh, const std::vector<int>& missing, const std::string& reason);
  bool close_unmended(MeshState& mesh);

  // watch_hangs.cc, loop thread, `mutex` held
  bool waits_for_silence(const MeshState& mesh, const CallState& call) const;
  void look_for_hang(MeshState& mesh);
  void inquire(MeshState& mesh, const CallState& call, bool of_silence);
  void on_report(ReportMessage message);
  void conclude(MeshState& mesh);
  void note_no_hang(MeshState& mesh, const CallState& call);
  void on_paces(MeshState& mesh, int rank, const std::vector<CommandPace>& paces);

  // watermarks.cc, `mutex` held
  void consider_watermark(MeshState& mesh);
  void on_kept(const KeptMessage& kept);
  void complete_watermark(MeshState& mesh);
  void give_up_watermark(MeshState& mesh);
  std::string watermark_folder(const MeshState& mesh, uint64_t watermark) const;
  double young_seconds(const MeshState& mesh) const;
  double interval_seconds(const MeshState& mesh) const;
};

}  // namespace flywheel::runtime
