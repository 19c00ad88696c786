#include "runtime/controller.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "base/file.h"
#include "runtime/controller_internal.h"

namespace flywheel::runtime {
namespace {

constexpr uint64_t kMaxInFlight = 32'768;  // calls of a mesh without a result; more wait in call()

bool same_call(const Command& logged, const Command& now) {
  return logged.operation == now.operation && logged.args == now.args && logged.ranks == now.ranks &&
         logged.uses == now.uses && logged.cursor == now.cursor && logged.mesh == now.mesh &&
         logged.generator_key == now.generator_key && logged.want_value == now.want_value;
}

std::string brief(const Command& command) {
  return fmt::format("{}({} bytes, cursor {})", command.operation, command.args.size(), command.cursor);
}

// A short wait without sleeping: an answer that is on its way takes less time than waking up for it.
void spin_for(const std::atomic<bool>& done) {
  for (const Stopwatch clock; !done.load(std::memory_order_acquire) && clock.seconds() < 100e-6;)
    ::sched_yield();
}

// A call that could not be made.
std::shared_ptr<CallState> refused(Error error) {
  auto call = std::make_shared<CallState>();
  call->error = std::move(error);
  call->complete = call->done = true;
  return call;
}

}  // namespace

Core::~Core() {
  if (wake >= 0) ::close(wake);
  if (lock_fd >= 0) ::close(lock_fd);  // gives the run's lock back
}

// One controller at a time has a run: a lock that the kernel drops when its holder dies.
Result<void> Core::take_run() {
  RETURN_IF_ERROR(make_folders(options.folder));
  const std::string path = options.folder + "/controller.lock";
  lock_fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_fd < 0) return make_error(ErrorCode::kIo, "cannot open {}: {}", path, std::strerror(errno));
  // A controller that was killed a moment ago may still be on its way out.
  for (const Deadline patience = Deadline::after_ms(3000); ::flock(lock_fd, LOCK_EX | LOCK_NB) != 0;) {
    if (patience.expired()) {
      return make_error(ErrorCode::kUnavailable,
                        "run {} is in the hands of another controller ({} is locked)", options.run, path);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return {};
}

Result<void> Core::start() {
  RETURN_IF_ERROR(take_run());
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
  temporary = std::make_unique<TempFolder>();  // mode 0700: only the owner reaches the sockets in it
  socket_folder = temporary->path();
  const bool tcp = !options.address.empty();
  const auto bind = [&](int type, const char* name) {
    return transport->bind(type, tcp ? fmt::format("tcp://{}:*", options.address)
                                     : fmt::format("ipc://{}/{}", socket_folder, name));
  };
  ASSIGN_OR_RETURN(commands, bind(ZMQ_ROUTER, "commands"));
  ASSIGN_OR_RETURN(results, bind(ZMQ_PULL, "results"));
  ASSIGN_OR_RETURN(control, bind(ZMQ_ROUTER, "control"));
  if (zmq_socket_monitor(control.zmq.handle(), "inproc://control-monitor", ZMQ_EVENT_DISCONNECTED) != 0) {
    return make_error(ErrorCode::kUnavailable, "cannot watch connections: {}", zmq_strerror(zmq_errno()));
  }
  monitor = zmq::socket_t(transport->context(), ZMQ_PAIR);
  monitor.set(zmq::sockopt::linger, 0);
  monitor.connect("inproc://control-monitor");
  wake = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  record(RecordType::kRun, RunRecord{1, options.run, options.seed,
                                     std::chrono::duration_cast<std::chrono::milliseconds>(now).count()});
  log->flush();
  loop_thread = std::thread([this] { loop(); });
  return {};
}

void Core::shutdown() {
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
  log.reset();
  monitor.close();
  commands.zmq.close(), results.zmq.close(), control.zmq.close();
  transport.reset();
}

std::shared_ptr<CallState> Core::issue(MeshState& mesh, const std::vector<int>& ranks,
                                       const std::string& operation, const std::string& args,
                                       const CallOptions& options_of_call) {
  const auto found = find_operation(operation);
  if (!found.ok()) return refused(found.error());
  auto call = std::make_shared<CallState>();
  call->core = this;
  call->mesh = &mesh;
  call->ranks = ranks;
  Command& command = call->command;
  command.mesh = mesh.id;
  command.operation = operation;
  command.kind = (*found)->kind;
  command.want_value = options_of_call.want_value;
  if (static_cast<int>(ranks.size()) != mesh.shape.size()) command.ranks = ranks;
  command.args = args;
  command.uses = options_of_call.uses;
  command.cursor = options_of_call.cursor;
  command.deadline_ms = options_of_call.deadline_ms;
  call->outcomes.resize(ranks.size());
  call->have.assign(ranks.size(), 0);
  call->missing = ranks.size();
  bool lone = false;
  {
    std::unique_lock lock(mutex);
    const auto stopped = [&] { return failed || stop || mesh.phase == MeshState::Phase::kFailed; };
    while (!stopped() && mesh.tail_base + mesh.tail.size() - mesh.first_incomplete >= kMaxInFlight) {
      ++waiters;
      changed.wait_for(lock, std::chrono::milliseconds(100));
      --waiters;
    }
    if (failed) return refused(*failed);
    if (mesh.failed) return refused(*mesh.failed);
    if (stop) return refused(make_error(ErrorCode::kCancelled, "the controller is closed"));
    command.sequence = next_sequence;
    command.generator_key = options_of_call.generator_key.value_or(
        (uint64_t{Philox::at(options.seed, 1, command.sequence, 0)} << 32) |
        Philox::at(options.seed, 1, command.sequence, 1));
    if (const LoggedCall* logged = history.find(command.sequence); logged != nullptr) {
      if (!same_call(logged->command, command)) {
        failed = make_error(
            ErrorCode::kInvalid,
            "run {}: command {} is {} in the log and {} now: a run is taken up by the program that began "
            "it, with the same configuration; start a new run for a changed one",
            options.run, command.sequence, brief(logged->command), brief(command));
        return refused(*failed);
      }
      ++next_sequence;
      const auto known =
          std::lower_bound(mesh.tail.begin(), mesh.tail.end(), command.sequence,
                           [](const auto& a, uint64_t wanted) { return a->command.sequence < wanted; });
      if (known != mesh.tail.end() && (*known)->command.sequence == command.sequence) return *known;
      return from_history(mesh, *logged);
    }
    ++next_sequence;
    command.epoch = mesh.epoch;
    lone = mesh.first_incomplete - mesh.tail_base == mesh.tail.size();
    call->log_position = record(RecordType::kCommand, command);
    mesh.tail.push_back(call);
  }
  log->flush(lone);
  return call;
}

Result<Outcome> Core::fetch(const std::shared_ptr<CallState>& call, size_t index, Deadline deadline) {
  spin_for(call->done);
  std::unique_lock lock(mutex);
  RETURN_IF_ERROR(wait(lock, deadline, "a result", [&] { return call->done.load(); }));
  if (call->error) return *call->error;
  if (index >= call->outcomes.size()) {
    return make_error(ErrorCode::kInvalid, "rank {} of a call on {} ranks", index, call->outcomes.size());
  }
  if (call->outcomes[index].has_value) return call->outcomes[index];
  const auto request = std::make_shared<Fetch>();
  request->call = call;
  request->index = index;
  fetches.push_back(request);
  send_fetch(*request);
  const auto came = wait(lock, deadline, "fetching a value",
                         [&] { return request->outcome.has_value() || call->mesh->failed || stop; });
  fetches.remove(request);
  RETURN_IF_ERROR(came);
  if (!request->outcome) {
    return call->mesh->failed ? *call->mesh->failed
                              : make_error(ErrorCode::kCancelled, "the controller is closed");
  }
  Outcome& outcome = *request->outcome;
  if (outcome.failed) return Error{outcome.code, outcome.value};
  if (outcome.digest != call->outcomes[index].digest) {
    return make_error(ErrorCode::kCorrupt, "the value of command {} is not what its digest says",
                      call->command.sequence);
  }
  record(RecordType::kValue, ValueRecord{call->command.sequence, static_cast<int>(index), outcome.value});
  call->outcomes[index].has_value = true;
  call->outcomes[index].value = outcome.value;
  return outcome;
}

void Core::release(CallState& call) {
  if (call.mesh == nullptr) return;
  std::scoped_lock lock(mutex);
  if (stop || call.error) return;
  call.mesh->releases.emplace_back(next_sequence - 1, call.command.sequence);
}

bool Future::done() const {
  CHECK(state_ != nullptr, "an empty Future");
  if (state_->core == nullptr) return true;
  return state_->done.load(std::memory_order_acquire);
}

Result<void> Future::wait(Deadline deadline) const {
  CHECK(state_ != nullptr, "an empty Future");
  if (state_->core == nullptr) return *state_->error;
  spin_for(state_->done);
  std::unique_lock lock(state_->core->mutex);
  RETURN_IF_ERROR(state_->core->wait(lock, deadline, "a result", [&] { return state_->done.load(); }));
  if (state_->error) return *state_->error;
  return {};
}

Result<std::string> Future::get(int index, Deadline deadline) const {
  CHECK(state_ != nullptr, "an empty Future");
  if (state_->core == nullptr) return *state_->error;
  ASSIGN_OR_RETURN(Outcome outcome, state_->core->fetch(state_, static_cast<size_t>(index), deadline));
  return std::move(outcome.value);
}

Result<std::vector<uint64_t>> Future::digests(Deadline deadline) const {
  RETURN_IF_ERROR(wait(deadline));
  std::vector<uint64_t> digests;
  for (const auto& outcome : state_->outcomes) digests.push_back(outcome.digest);
  return digests;
}

uint64_t Future::sequence() const {
  return state_->command.sequence;
}
bool Future::replayed() const {
  return state_->replayed;
}

const std::string& Mesh::name() const {
  return mesh_->name;
}
const Shape& Mesh::shape() const {
  return mesh_->shape;
}

Future Mesh::call(const std::string& operation, const std::string& args, const CallOptions& options) const {
  CHECK(core_ != nullptr, "a call on an empty Mesh");
  auto call = core_->issue(*mesh_, ranks_, operation, args, options);
  // The handle: when the last copy goes, the workers may drop the value.
  CallState* raw = call.get();
  return Future(std::shared_ptr<CallState>(
      raw, [core = core_, call = std::move(call)](CallState*) { core->release(*call); }));
}

Result<Mesh> Mesh::slice(const std::map<std::string, int>& at) const {
  ASSIGN_OR_RETURN(const std::vector<int> inside, mesh_->shape.slice(at));
  std::vector<int> ranks;
  std::set_intersection(ranks_.begin(), ranks_.end(), inside.begin(), inside.end(),
                        std::back_inserter(ranks));
  if (ranks.empty())
    return make_error(ErrorCode::kInvalid, "this slice of a slice of mesh {} is empty", mesh_->name);
  return Mesh(core_, mesh_, std::move(ranks));
}

MeshStatus Mesh::status() const {
  std::scoped_lock lock(core_->mutex);
  MeshStatus status;
  status.epoch = mesh_->epoch;
  status.watermark = mesh_->watermark;
  status.durable_watermark = mesh_->durable;
  status.recoveries = mesh_->recoveries;
  status.last_recovery_seconds = mesh_->last_recovery_seconds;
  status.last_freeze_seconds = mesh_->freeze_seconds;
  status.watermarks = mesh_->watermarks;
  status.running = mesh_->phase == MeshState::Phase::kRunning;
  for (const auto& worker : mesh_->workers) status.pids.push_back(worker.pid);
  return status;
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

bool Controller::replaying() const {
  std::scoped_lock lock(core_->mutex);
  return core_->history.find(core_->next_sequence) != nullptr;
}

Result<Mesh> Controller::mesh(const std::string& name, std::vector<Axis> axes, const MeshOptions& options) {
  Shape shape(std::move(axes));
  RETURN_IF_ERROR(shape.check());
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
    mesh.epoch = before.epoch;
    mesh.durable_on_disk = before.durable;
    while (!mesh.durable_on_disk.empty() &&
           !path_exists(core.watermark_folder(mesh, mesh.durable_on_disk.back()) + "/replicated")) {
      mesh.durable_on_disk.pop_back();
    }
    if (!mesh.durable_on_disk.empty()) mesh.durable = mesh.durable_on_disk.back();
    mesh.watermark = mesh.durable;
    for (const auto& call : core.history.calls) {
      if (call.command.mesh == mesh.id && call.command.sequence > mesh.durable) {
        mesh.tail.push_back(core.from_history(mesh, call));
      }
    }
    while (mesh.first_incomplete < mesh.tail.size() && mesh.tail[mesh.first_incomplete]->complete) {
      ++mesh.first_incomplete;
    }
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
  core.post([&core, &mesh, all] {
    core.recover(mesh, all, core.history.takes > 0 ? "taken up again" : "started");
  });
  const auto up =
      core.wait(lock, Deadline::after_ms(core.options.start_timeout_ms * 2), "starting the workers",
                [&] { return mesh.phase != MeshState::Phase::kRestoring || core.failed; });
  RETURN_IF_ERROR(up);
  if (core.failed) return *core.failed;
  if (mesh.failed) return *mesh.failed;
  return Mesh(core_, &mesh, std::vector<int>(all.begin(), all.end()));
}

Result<void> Controller::checkpoint(Deadline deadline) {
  Core& core = *core_;
  std::unique_lock lock(core.mutex);
  const uint64_t target = core.next_sequence - 1;
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
    if (mesh.failed) return *mesh.failed;
  }
  if (core.failed) return *core.failed;
  lock.unlock();
  return core.log->sync(deadline);
}

Result<void> Controller::close(Deadline deadline) {
  Core& core = *core_;
  {
    std::unique_lock lock(core.mutex);
    for (auto& mesh : core.meshes) {
      RETURN_IF_ERROR(core.wait(lock, deadline, "closing", [&] {
        return core.failed || mesh.failed || mesh.first_incomplete - mesh.tail_base == mesh.tail.size();
      }));
      if (mesh.failed) return *mesh.failed;
    }
    if (core.failed) return *core.failed;
    core.record(RecordType::kClose, CloseRecord{core.next_sequence - 1});
  }
  RETURN_IF_ERROR(core.log->sync(deadline));
  core.shutdown();
  return {};
}

}  // namespace flywheel::runtime
