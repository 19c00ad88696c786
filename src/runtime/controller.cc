#include "runtime/controller.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <numeric>

#include "base/posix.h"
#include "runtime/controller_internal.h"
#include "runtime/run_lock.h"

namespace flywheel::runtime {
namespace {

constexpr size_t kFailuresKept = 1000;
// Descriptors of a controller with its program, and more of each worker: its process, log, line and channels.
constexpr uint64_t kOpenFiles = 64, kOpenFilesAWorker = 8;

// Rank r's own piece of a snapshot is also with rank r + step. The least step that leaves the fewest pairs on
// one host, so that a host which is lost whole takes no piece with it.
int buddy_step(const std::vector<WorkerState>& workers) {
  const size_t n = workers.size();
  size_t best = 1, fewest = n + 1;
  for (size_t step = 1; step < n; ++step) {
    size_t together = 0;
    for (size_t rank = 0; rank < n; ++rank)
      together += workers[rank].host.name == workers[(rank + step) % n].host.name;
    if (together < fewest) best = step, fewest = together;
  }
  return static_cast<int>(best);
}

}  // namespace

Core::~Core() {
  if (wake >= 0) ::close(wake);
}

Result<void> Core::start() {
  RETURN_IF_ERROR(allow_open_files(kOpenFiles));
  ASSIGN_OR_RETURN(run_lock, lock_run(options.folder, options.run));
  log_path = options.folder + "/commands.log";
  {
    ASSIGN_OR_RETURN(const LogContent content, read_log(log_path));
    ASSIGN_OR_RETURN(history, read_history(content));
    if (content.torn_bytes > 0)
      LOG_WARN("{}: cut {} bytes of an unfinished write", log_path, content.torn_bytes);
    if (history.run && history.run->run != options.run) {
      return make_error(ErrorCode::kInvalid, "{} is the log of run {}, not of {}", log_path, history.run->run,
                        options.run);
    }
    if (history.run && history.run->seed != options.seed) {
      return make_error(ErrorCode::kInvalid, "run {} was started with seed {}, not {}", options.run,
                        history.run->seed, options.seed);
    }
    ASSIGN_OR_RETURN(
        log, CommandLog::open(
                 log_path, content.end, {.sync = options.sync, .full_wait_ms = options.log_full_wait_ms},
                 [this](uint64_t position) { on_log_durable(position); },
                 [this](const Error& error) { on_log_failed(error); }));
  }
  next_incarnation = (history.takes + 1) << 32;
  if (options.launcher == nullptr) options.launcher = make_local_launcher();
  Keys keys;
  if (!options.address.empty()) {
    ASSIGN_OR_RETURN(keys, Keys::make());
  }
  transport = std::make_unique<Transport>(keys);
  ASSIGN_OR_RETURN(sockets, SocketFolder::make());
  const bool tcp = !options.address.empty();
  int next_port = options.port;
  const auto endpoint = [&](const char* kind, const char* name) {
    if (!tcp) return fmt::format("{}{}/{}", kind, sockets.path(), name);
    const std::string port = options.port == 0 ? "*" : std::to_string(next_port++);
    return fmt::format("tcp://{}:{}", options.address, port);
  };
  const LineEndpoints where{endpoint("unix:", "line"), tcp ? endpoint("", "") : ""};
  Lines::Events events{[this](std::string_view message) { on_result(message); },
                       [this](const std::string& identity) { on_line_closed(identity); }};
  ASSIGN_OR_RETURN(lines, Lines::listen(*transport, where, std::move(events), [this] {
                     lines_changed = true;
                     poke();
                   }));
  ASSIGN_OR_RETURN(control, transport->bind(ZMQ_ROUTER, endpoint("ipc://", "control")));
  if (zmq_socket_monitor(control.zmq.handle(), "inproc://control-monitor", ZMQ_EVENT_DISCONNECTED) != 0) {
    return make_error(ErrorCode::kUnavailable, "cannot watch connections: {}", zmq_strerror(zmq_errno()));
  }
  monitor = zmq::socket_t(transport->context(), ZMQ_PAIR);
  monitor.set(zmq::sockopt::linger, 0);
  monitor.connect("inproc://control-monitor");
  wake = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake < 0) return system_error("cannot make", "an eventfd");
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  children =
      std::make_unique<Supervisor>(path(), [this](const Failure& failure) { on_child_failure(failure); });
  record(RecordType::kRun, RunRecord{1, options.run, options.seed,
                                     std::chrono::duration_cast<std::chrono::milliseconds>(now).count()});
  log->flush();
  loop_thread = std::thread([this] { loop(); });
  return {};
}

void Core::shutdown() {
  if (children != nullptr) children->stop_all();
  {
    std::scoped_lock lock(mutex);
    stop = true;
    for (auto& mesh : meshes) {
      for (const auto& call : mesh.tail) {
        if (call->done) continue;
        call->error =
            make_error(ErrorCode::kCancelled, "the controller was closed before command {} was done",
                       call->command.sequence);
        call->done = true;
      }
    }
    changed.notify_all();
  }
  if (loop_thread.joinable()) {
    poke();
    loop_thread.join();
  }
  if (hang_writer.joinable()) hang_writer.join();
  children.reset();
  log.reset();
  monitor.close();
  lines.reset();
  control.zmq.close();
  transport.reset();
}

// Where a mesh of an earlier controller was: its last watermark on disk, and the calls since then.
void Core::take_up(MeshState& mesh, const LoggedMesh& before) {
  mesh.epoch = before.epoch;
  mesh.durable_on_disk = before.durable;
  // In the log's order; but one that was given up may have been made again after older ones.
  std::sort(mesh.durable_on_disk.begin(), mesh.durable_on_disk.end());
  mesh.durable_on_disk.erase(std::unique(mesh.durable_on_disk.begin(), mesh.durable_on_disk.end()),
                             mesh.durable_on_disk.end());
  find_durable(mesh);
  mesh.watermark = mesh.durable;
  for (const auto& call : history.calls) {
    if (call.command.mesh == mesh.id && call.command.sequence > mesh.durable)
      mesh.tail.push_back(from_history(mesh, call));
  }
  while (mesh.first_incomplete < mesh.tail.size() && mesh.tail[mesh.first_incomplete]->complete)
    ++mesh.first_incomplete;
}

std::string Core::path() const {
  const std::string above = path_in_tree();
  return above.empty() ? options.run : above + "/" + options.run;
}

std::string Core::path(const MeshState& mesh) const {
  return path() + "/" + mesh.name;
}

std::string Core::path(const MeshState& mesh, int rank) const {
  return fmt::format("{}/{}", path(mesh), rank);
}

void Core::note(Failure failure) {
  failures.push_back(failure);
  while (failures.size() > kFailuresKept) failures.pop_front();
  unreported.push_back(std::move(failure));
  poke();
}

Result<std::unique_ptr<Controller>> Controller::open(ControllerOptions options) {
  CHECK(!options.folder.empty() && !options.run.empty(), "a controller needs a folder and a run");
  auto core = std::make_shared<Core>();
  core->options = std::move(options);
  std::unique_ptr<Controller> controller(new Controller(core));
  RETURN_IF_ERROR(core->start());
  return controller;
}

Controller::~Controller() {
  core_->shutdown();
}

bool Controller::resumed() const {
  return core_->history.takes > 0;
}

Lives Controller::lives() const {
  std::scoped_lock lock(core_->mutex);
  Lives lives{.taken_up = static_cast<int>(core_->history.takes)};
  for (const auto& [id, mesh] : core_->history.meshes) {
    for (const auto& [operation, times] : mesh.done_again.total()) lives.done_again[operation] += times;
    if (mesh.closed) continue;  // it went back in an earlier life
    for (const auto& [operation, times] : mesh.done_again.last()) lives.done_again_now[operation] += times;
  }
  return lives;
}

bool Controller::replaying() const {
  std::scoped_lock lock(core_->mutex);
  return core_->history.find(core_->next_sequence) != nullptr;
}

Result<Mesh> Controller::mesh(const std::string& name, std::vector<Axis> axes, const MeshOptions& options) {
  Shape shape(std::move(axes));
  RETURN_IF_ERROR(shape.check());
  RETURN_IF_ERROR(allow_open_files(kOpenFiles + kOpenFilesAWorker * static_cast<uint64_t>(shape.size())));
  Core& core = *core_;
  std::unique_lock lock(core.mutex);
  if (core.failed) return *core.failed;
  for (const auto& other : core.meshes) {
    if (other.name == name) return make_error(ErrorCode::kExists, "mesh {} is open already", name);
  }
  for (const auto& host : options.hosts) {
    if (host.address.empty() != core.options.address.empty()) {
      return make_error(ErrorCode::kInvalid,
                        "host {}: a mesh over several hosts needs an address for each and for the "
                        "controller",
                        host.name);
    }
  }
  MeshState& mesh = core.meshes.emplace_back();
  mesh.id = static_cast<uint32_t>(core.meshes.size());
  mesh.name = name;
  mesh.shape = shape;
  mesh.options = options;
  mesh.hang_ms = options.hang_ms;
  mesh.paces = Paces(shape.size());
  mesh.budget = SnapshotBudget(core.options.watermark_cost);
  if (const auto logged = core.history.meshes.find(mesh.id); logged != core.history.meshes.end()) {
    const LoggedMesh& before = logged->second;
    if (before.record.name != name || !(before.record.shape == shape)) {
      const Error error =
          make_error(ErrorCode::kInvalid, "run {}: mesh {} was {} ({}), now it is {} ({}); start a new run",
                     core.options.run, mesh.id, before.record.name, before.record.shape.to_string(), name,
                     shape.to_string());
      core.meshes.pop_back();
      return error;
    }
    if (before.closed) {
      mesh.closed = before.closed;
      mesh.failed = closed_error(name, before.closed->reason);
      mesh.phase = MeshState::Phase::kFailed;
      mesh.epoch = before.epoch;
      std::vector<int> ranks(static_cast<size_t>(shape.size()));
      std::iota(ranks.begin(), ranks.end(), 0);
      return Mesh(core_, &mesh, std::move(ranks));
    }
    core.take_up(mesh, before);
  } else {
    core.record(RecordType::kMesh, MeshRecord{mesh.id, name, shape});
  }
  const size_t hosts = std::max<size_t>(1, options.hosts.size());
  const auto size = static_cast<size_t>(shape.size());
  mesh.workers.resize(size);
  std::set<int> all;
  for (size_t rank = 0; rank < size; ++rank) {
    mesh.workers[rank].id = WorkerId{mesh.id, static_cast<int>(rank), 0};
    mesh.workers[rank].host =
        options.hosts.empty() ? Host{"local", {}, core.options.address} : options.hosts[rank * hosts / size];
    all.insert(static_cast<int>(rank));
  }
  mesh.buddy_step = buddy_step(mesh.workers);
  core.post([&core, &mesh, all] {
    core.recover(mesh, all, core.history.takes > 0 ? "taken up again" : "started");
  });
  const Deadline deadline = Deadline::after_ms(core.options.start_timeout_ms * 2 + options.replace_ms);
  const auto settled = [&] { return mesh.phase != MeshState::Phase::kRestoring || core.failed; };
  while (!settled()) {
    const Deadline look = options.cancelled ? deadline.sooner(Deadline::after_ms(100)) : deadline;
    const Result<void> up = core.wait(lock, look, "starting the workers", settled);
    if (!up.ok() && deadline.expired()) return up.error();
    if (!options.cancelled) continue;
    lock.unlock();  // it is the caller's own
    const bool cancelled = options.cancelled();
    lock.lock();
    if (cancelled)
      return make_error(ErrorCode::kCancelled, "mesh {} was given up while its workers started", name);
  }
  if (core.failed) return *core.failed;
  if (mesh.failed && !mesh.closed) return *mesh.failed;
  return Mesh(core_, &mesh, std::vector<int>(all.begin(), all.end()));
}

Result<void> Controller::checkpoint(Deadline deadline) {
  Core& core = *core_;
  std::unique_lock lock(core.mutex);
  const uint64_t target = core.next_sequence - 1;
  Result<void> outcome;  // of the first mesh that failed; the others get theirs all the same
  for (auto& mesh : core.meshes) {
    const auto settled = [&] {
      return core.failed || mesh.failed || mesh.first_incomplete - mesh.tail_base == mesh.tail.size();
    };
    RETURN_IF_ERROR(core.wait(lock, deadline, "a checkpoint", settled));
    const uint64_t goal = std::min(target, mesh.last_dispatched);
    const auto there = [&] {
      if (mesh.durable < goal) mesh.want_durable = true;
      return core.failed || mesh.failed || mesh.durable >= goal;
    };
    core.poke();
    RETURN_IF_ERROR(core.wait(lock, deadline, "a checkpoint", there));
    if (mesh.failed && !mesh.closed && outcome.ok()) outcome = *mesh.failed;
  }
  if (core.failed) return *core.failed;
  lock.unlock();
  RETURN_IF_ERROR(core.log->sync(deadline));
  return outcome;
}

Result<void> Controller::close(Deadline deadline) {
  Core& core = *core_;
  Result<void> outcome;
  {
    std::unique_lock lock(core.mutex);
    for (auto& mesh : core.meshes) {
      RETURN_IF_ERROR(core.wait(lock, deadline, "closing", [&] {
        return core.failed || mesh.failed || mesh.first_incomplete - mesh.tail_base == mesh.tail.size();
      }));
      if (mesh.failed && !mesh.closed && outcome.ok()) outcome = *mesh.failed;
    }
    if (core.failed) return *core.failed;
    // A run with a failed mesh has not ended well: it can be taken up again.
    if (outcome.ok()) core.record(RecordType::kClose, CloseRecord{core.next_sequence - 1});
  }
  RETURN_IF_ERROR(core.log->sync(deadline));
  core.shutdown();
  return outcome;
}

Supervisor& Controller::children() {
  return *core_->children;
}

std::vector<Failure> Controller::failures() const {
  std::scoped_lock lock(core_->mutex);
  return {core_->failures.begin(), core_->failures.end()};
}

}  // namespace flywheel::runtime
