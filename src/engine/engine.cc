#include "engine/engine.h"

#include <algorithm>

#include "base/log.h"
#include "base/posix.h"
#include "engine/engine_internal.h"

namespace flywheel::engine {
namespace {

constexpr auto kIdleBeat = std::chrono::milliseconds(200);

int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Deadline::Clock::now().time_since_epoch())
      .count();
}

}  // namespace

Engine::Impl::Impl(const EngineConfig& config, model::OpenModel opened, std::unique_ptr<Executor> executor,
                   const LoopOptions& options, uint64_t seed, ThreadPool& pool)
    : config(config),
      model(std::move(opened)),
      max_context_tokens(executor->limits().max_positions),
      vocab_size(executor->decoder().config.vocab_size),
      metrics(config.served_name.empty() ? model.name : config.served_name),
      seeds(seed),
      heartbeat_ms(now_ms()),
      loop(std::move(executor), options, model.tokenizer.get(), metrics, pool) {
  latest_stats = loop.stats();
  thread = std::thread([this] { run(); });
}

Engine::Impl::~Impl() {
  stop();
}

void Engine::Impl::stop() {
  {
    const std::lock_guard lock(mutex);
    stopping = true;
  }
  mail.notify_all();
  const std::lock_guard one_joins(joining);
  if (thread.joinable()) thread.join();
}

Result<RequestId> Engine::Impl::submit(GenerationRequest request, EventCallback callback) {
  RETURN_IF_ERROR(validate(request, vocab_size));
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t room = max_context_tokens - prompt;
  if (room < std::min<int64_t>(1, request.max_tokens.value_or(1))) {
    return make_error(ErrorCode::kInvalid,
                      "prompt: has {} tokens; the context holds {} with at least one to generate", prompt,
                      max_context_tokens);
  }
  if (request.max_tokens.value_or(1) > room) {
    return make_error(ErrorCode::kInvalid,
                      "max_tokens: {} beside a prompt of {} tokens; the context holds {}",
                      *request.max_tokens, prompt, max_context_tokens);
  }
  if (request.n > config.max_waiting) {
    return make_error(ErrorCode::kInvalid, "n: {} sequences; at most {} may wait (max_waiting)", request.n,
                      config.max_waiting);
  }
  auto active = std::make_shared<ActiveRequest>();
  active->max_tokens = request.max_tokens.value_or(room);
  active->end_tokens = request.stop_tokens;
  if (!request.ignore_end_tokens) {
    active->end_tokens.insert(active->end_tokens.end(), model.end_tokens.begin(), model.end_tokens.end());
  }
  active->request = std::move(request);
  active->callback = std::move(callback);
  const std::lock_guard lock(mutex);
  if (!failure.empty()) return make_error(ErrorCode::kUnavailable, "the engine has stopped: {}", failure);
  if (stopping) return make_error(ErrorCode::kUnavailable, "the engine is stopping");
  const int64_t waiting = queued_sequences + latest_stats.waiting;
  if (waiting + active->request.n > config.max_waiting) {
    return make_error(ErrorCode::kFull, "{} sequences are waiting already, at most {} may", waiting,
                      config.max_waiting);
  }
  const RequestId id = next_id++;
  active->id = id;
  active->seed = active->request.sampling.seed.value_or(seeds.next_u64());
  queued_sequences += active->request.n;
  submitted.push_back(std::move(active));
  mail.notify_one();
  return id;
}

void Engine::Impl::cancel(RequestId id) {
  const std::lock_guard lock(mutex);
  cancelled.push_back(id);
  mail.notify_one();
}

bool Engine::Impl::read_mail() {
  std::vector<std::shared_ptr<ActiveRequest>> new_requests;
  std::vector<RequestId> new_cancels;
  {
    const std::lock_guard lock(mutex);
    if (stopping) return false;
    new_requests.swap(submitted), new_cancels.swap(cancelled);
    queued_sequences = 0;
    // They count as waiting from now on, so that the queue never looks emptier than it is.
    for (const auto& active : new_requests) latest_stats.waiting += active->request.n;
  }
  for (const auto& active : new_requests) loop.add(active);
  for (const RequestId id : new_cancels) loop.end(id, FinishReason::kCancelled);
  return true;
}

void Engine::Impl::run() {
  name_thread("engine");
  try {
    while (read_mail()) {
      heartbeat_ms = now_ms();
      const bool worked = loop.step();
      heartbeat_ms = now_ms();
      std::unique_lock lock(mutex);
      latest_stats = loop.stats();
      if (worked) continue;
      mail.wait_for(lock, kIdleBeat, [&] { return stopping || !submitted.empty() || !cancelled.empty(); });
    }
    stop_with("");
  } catch (const std::exception& error) {
    LOG_ERROR("engine {}: {}", model.name, error.what());
    stop_with(error.what());
  }
}

void Engine::Impl::stop_with(const std::string& error) {
  std::vector<std::shared_ptr<ActiveRequest>> left;
  {
    const std::lock_guard lock(mutex);
    failure = error;
    stopping = true;
    left.swap(submitted);
  }
  for (const auto& active : left) loop.add(active);
  loop.end_all(error.empty() ? FinishReason::kCancelled : FinishReason::kError, error);
  const std::lock_guard lock(mutex);
  latest_stats = loop.stats();
}

std::string Engine::Impl::why_unhealthy() const {
  const std::lock_guard lock(mutex);
  if (!failure.empty()) return "the engine has stopped: " + failure;
  if (stopping) return "the engine is stopping";
  const int64_t silent_ms = now_ms() - heartbeat_ms;
  if (silent_ms > config.stall_ms)
    return fmt::format("no step has ended for {:.1f} s", static_cast<double>(silent_ms) / 1e3);
  return "";
}

EngineStats Engine::Impl::stats() const {
  const std::lock_guard lock(mutex);
  EngineStats stats = latest_stats;
  stats.waiting += queued_sequences;
  stats.max_context_tokens = max_context_tokens;
  return stats;
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;
Result<RequestId> Engine::submit(GenerationRequest request, EventCallback callback) {
  return impl_->submit(std::move(request), std::move(callback));
}
void Engine::cancel(RequestId id) {
  impl_->cancel(id);
}
void Engine::stop() {
  impl_->stop();
}
bool Engine::healthy() const {
  return why_unhealthy().empty();
}
std::string Engine::why_unhealthy() const {
  return impl_->why_unhealthy();
}
EngineStats Engine::stats() const {
  return impl_->stats();
}
const model::OpenModel& Engine::model() const {
  return impl_->model;
}
const model::Tokenizer& Engine::tokenizer() const {
  CHECK(impl_->model.tokenizer != nullptr, "{} has no tokenizer", impl_->model.name);
  return *impl_->model.tokenizer;
}
int64_t Engine::max_context_tokens() const {
  return impl_->max_context_tokens;
}
int64_t Engine::max_waiting() const {
  return impl_->config.max_waiting;
}

}  // namespace flywheel::engine
