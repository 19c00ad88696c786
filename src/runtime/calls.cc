// Calls as the program makes them: matched with the log or written to it; their results waited for and
// fetched.
#include <algorithm>
#include <chrono>
#include <iterator>

#include "runtime/awake_internal.h"
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

// A call that could not be made.
std::shared_ptr<CallState> refused(Error error) {
  auto call = std::make_shared<CallState>();
  call->error = std::move(error);
  call->complete = call->done = true;
  return call;
}

}  // namespace

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
    // Up to its last call a mesh that an earlier controller closed is answered from the log.
    if (mesh.failed && (!mesh.closed || next_sequence > mesh.closed->last_sequence))
      return refused(*mesh.failed);
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
      const auto answered = from_history(mesh, *logged);
      if (mesh.closed && !answered->complete) {
        answered->error = mesh.failed;
        answered->complete = answered->done = true;
      }
      return answered;
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
  stay_awake([&] { return call->done.load(); });
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
  auto came = wait(lock, deadline, "fetching a value",
                   [&] { return request->outcome.has_value() || call->mesh->failed || stop; });
  fetches.remove(request);
  RETURN_IF_ERROR(std::move(came));
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
  stay_awake([&] { return state_->done.load(); });
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

std::vector<Error> Future::failures() const {
  std::vector<Error> failures;
  if (state_->core == nullptr || !done()) return failures;
  for (const Outcome& outcome : state_->outcomes) {
    if (outcome.failed) failures.push_back(Error{outcome.code, outcome.value});
  }
  return failures;
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

void Mesh::replace(const std::vector<int>& ranks, const std::string& reason) const {
  Core& core = *core_;
  std::unique_lock lock(core.mutex);
  const auto begun = std::make_shared<bool>(false);
  core.post([&core, mesh = mesh_, lost = std::set<int>(ranks.begin(), ranks.end()), reason, begun] {
    for (const int rank : lost) core.note({core.path(*mesh, rank), reason, OnFailure::kRestart});
    core.recover(*mesh, lost, reason);
    *begun = true;
    core.changed.notify_all();
  });
  // The loop comes by many times a second. Should it be late, the recovery comes with it.
  const auto late = core.wait(lock, Deadline::after_ms(10'000), "giving workers up",
                              [&] { return *begun || core.failed || core.stop; });
  if (!late.ok()) LOG_WARN("mesh {}: {}", mesh_->name, late.error().message);
}

Result<void> Mesh::close(const std::string& reason, Deadline deadline) const {
  Core& core = *core_;
  std::unique_lock lock(core.mutex);
  RETURN_IF_ERROR(core.wait(lock, deadline, "closing a mesh", [&] {
    return core.failed || mesh_->failed || mesh_->first_incomplete - mesh_->tail_base == mesh_->tail.size();
  }));
  if (core.failed) return *core.failed;
  if (mesh_->closed) return {};
  if (mesh_->failed) return *mesh_->failed;
  core.close_mesh(*mesh_, {}, reason);
  // What is opened next finds their memory free.
  return core.wait(lock, deadline, "ending the workers of a mesh", [&] {
    return core.failed || std::ranges::all_of(mesh_->workers, [](const auto& w) { return w.pid == 0; });
  });
}

std::optional<MeshClosed> Mesh::closed() const {
  const std::scoped_lock lock(core_->mutex);
  if (!mesh_->closed || core_->next_sequence <= mesh_->closed->last_sequence) return std::nullopt;
  return MeshClosed{mesh_->closed->missing, mesh_->closed->reason, mesh_->workers.empty()};
}

MeshStatus Mesh::status() const {
  std::scoped_lock lock(core_->mutex);
  MeshStatus status;
  status.epoch = mesh_->epoch;
  status.watermark = mesh_->watermark;
  status.durable_watermark = mesh_->durable;
  status.recoveries = mesh_->recoveries;
  status.last_recovery = mesh_->last_recovery;
  status.last_recovery_seconds = mesh_->last_recovery.seconds_to_replay;
  status.last_freeze_seconds = mesh_->freeze_seconds;
  status.last_watermark_cost_seconds = mesh_->cost_seconds;
  status.watermarks_cost_seconds = mesh_->budget.spent_seconds();
  status.watermarks = mesh_->watermarks;
  status.watermark_interval_seconds = core_->interval_seconds(*mesh_);
  status.young_interval_seconds = core_->young_seconds(*mesh_);
  status.running = mesh_->phase == MeshState::Phase::kRunning;
  status.slowest_rank = mesh_->slowest_rank;
  status.slowest_ratio = mesh_->slowest_ratio;
  for (const auto& worker : mesh_->workers) {
    status.pids.push_back(worker.pid);
    status.resident_bytes.push_back(worker.resident_bytes);
  }
  return status;
}

}  // namespace flywheel::runtime
