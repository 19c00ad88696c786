// Child processes under supervision: a node of the tree that owns every process.
//
//   program, with its Controller           tiny-7
//   |- mesh                                tiny-7/train          the controller's; mended by recovery
//   |  |- worker                           tiny-7/train/1        the mesh's
//   |  |  `- child                         tiny-7/train/1/tools  the worker's: a Supervisor
//   |  `- ...
//   `- child                               tiny-7/eval           the program's own: a Supervisor
//      `- mesh, if the child is a controller   tiny-7/eval/eval-3/test
//
// A failure stops, or starts again, the subtree in which it happened and nothing else; its owner is told what
// it was and what was done, and its owner's owner too, up to the root (after Erlang's supervisors and
// Monarch's meshes of actors). A child that ends with 0 has not failed.
//
// No process outlives its owner. Each child runs under a keeper (keeper/keeper.cc), a process of a few pages
// that holds one end of a pipe. When the owner ends in whatever way, SIGKILL too, the pipe closes and the
// keeper kills all that descends from the child, also what has left its process group or has detached itself.
//
// Ownership: a Supervisor owns its children; destroying it ends them. Threads: any. Reports come from a
// thread of its own, one at a time; they must not call back into the Supervisor. Errors: kInvalid for a name
// in use with another command; kNotFound, kIo when it cannot be started.
//
//   Supervisor children("tiny-7/train/1", [&](const Failure& failure) { ... });
//   ASSIGN_OR_RETURN(pid_t pid, children.start("tools", {.command = {"python3", "tools.py"},
//                                                        .on_failure = OnFailure::kRestart}));
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/process.h"
#include "base/result.h"

namespace flywheel::runtime {

// What an owner does when a child has failed.
enum class OnFailure : uint8_t {
  kGiveUp,    // nothing: it stays ended
  kRestart,   // starts it again, unless it fails too often
  kEscalate,  // fails itself: its own owner decides
};

struct ChildSpec {
  std::vector<std::string> command;
  std::map<std::string, std::string> env;  // added to this process's
  std::string folder;                      // working folder; empty: this process's
  std::string output_file;                 // stdout and stderr appended there; empty: inherited
  OnFailure on_failure = OnFailure::kGiveUp;
  int max_restarts = 3;  // within within_ms; then it is given up
  int64_t within_ms = 60'000;
  bool operator==(const ChildSpec&) const = default;
};

struct Failure {
  std::string who;    // path in the tree: "tiny-7/train/1/tools"
  std::string cause;  // "killed by signal 9", "exited with 3"
  OnFailure answer = OnFailure::kGiveUp;
  template <typename V>
  void fields(V& v) {
    v(who), v(cause), v(answer);
  }
  std::string to_string() const;  // "tiny-7/train/1/tools: killed by signal 9; started again"
};

// "killed by signal 9", "exited with 3".
std::string how_it_ended(const ExitStatus& status);

struct ChildStatus {
  std::string name;
  pid_t pid = 0;  // of its keeper, which ends with it and as it did; 0: not running
  int restarts = 0;
  std::optional<ExitStatus> ended;  // how, when it does not run
};

class Supervisor {
 public:
  using Report = std::function<void(const Failure&)>;
  // `path` of this node. `report` is told of every failure below it; empty: the owner of this process is.
  explicit Supervisor(std::string path, Report report = {});
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // The child of that name: started, unless it runs already. Its process id (the keeper's).
  Result<pid_t> start(const std::string& name, const ChildSpec& spec);
  // SIGTERM, then the end of its whole subtree at the latest after `grace_ms`. No failure. kNotFound.
  Result<ExitStatus> stop(const std::string& name, int64_t grace_ms = 2000);
  void stop_all();
  // Until it has ended for good (not between two restarts). kDeadline, kNotFound.
  Result<ExitStatus> wait(const std::string& name, Deadline deadline);
  std::vector<ChildStatus> children() const;
  const std::string& path() const { return path_; }

 private:
  struct Child;
  Result<void> launch(Child& child);
  void watch();
  void look_after(Child& child, std::vector<Failure>& failures);
  void read_reports(Child& child, std::vector<Failure>& failures);
  void poke() const;

  const std::string path_;
  const Report report_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::unique_ptr<Child>> children_;
  bool stop_ = false;
  int wake_ = -1;
  std::thread watcher_;
};

// The path of this process in its owner's tree; empty for one that no Supervisor has started.
std::string path_in_tree();
// Tells this process's owner, if it has one, of a failure in here. Never blocks.
void report_to_owner(const Failure& failure);

}  // namespace flywheel::runtime
