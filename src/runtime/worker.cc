#include "runtime/worker.h"

#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include <condition_variable>
#include <deque>
#include <thread>

#include "base/env.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "runtime/executor.h"
#include "runtime/snapshots.h"

namespace flywheel::runtime {

std::string identity_of(const WorkerId& id) {
  return fmt::format("{}/{}/{}", id.mesh, id.rank, id.incarnation);
}

std::map<std::string, std::string> WorkerConfig::to_env() const {
  const Json json = {{"commands", commands},
                     {"results", results},
                     {"control", control},
                     {"peer", peer},
                     {"host", host},
                     {"mesh", id.mesh},
                     {"rank", id.rank},
                     {"incarnation", id.incarnation},
                     {"heartbeat_ms", heartbeat_ms},
                     {"lease_ms", lease_ms}};
  return {{"FLYWHEEL_WORKER", json.dump()}, {"FLYWHEEL_WORKER_KEYS", keys.to_text()}};
}

Result<WorkerConfig> WorkerConfig::from_env() {
  const std::string text = env::get("FLYWHEEL_WORKER");
  if (text.empty()) {
    return make_error(ErrorCode::kInvalid,
                      "FLYWHEEL_WORKER is not set; workers are started by their controller");
  }
  ASSIGN_OR_RETURN(const Json json, parse_json(text));
  WorkerConfig config;
  try {
    json.at("commands").get_to(config.commands);
    json.at("results").get_to(config.results);
    json.at("control").get_to(config.control);
    json.at("peer").get_to(config.peer);
    json.at("host").get_to(config.host);
    json.at("mesh").get_to(config.id.mesh);
    json.at("rank").get_to(config.id.rank);
    json.at("incarnation").get_to(config.id.incarnation);
    json.at("heartbeat_ms").get_to(config.heartbeat_ms);
    json.at("lease_ms").get_to(config.lease_ms);
  } catch (const Json::exception& error) {
    return make_error(ErrorCode::kInvalid, "FLYWHEEL_WORKER: {}", error.what());
  }
  ASSIGN_OR_RETURN(config.keys, Keys::from_text(env::get("FLYWHEEL_WORKER_KEYS")));
  return config;
}

namespace {

// The thread that talks: the control channel, the peers, and the rendezvous of this worker.
class ControlThread : public Rendezvous {
 public:
  ControlThread(const WorkerConfig& config, Transport& transport, Snapshots& snapshots)
      : config_(config), transport_(transport), snapshots_(snapshots) {}
  ~ControlThread() override {
    stop_ = true;
    poke();
    if (thread_.joinable()) thread_.join();
    if (wake_ >= 0) ::close(wake_);
  }

  Result<void> start(Executor& executor) {
    executor_ = &executor;
    wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ASSIGN_OR_RETURN(peer_, transport_.bind(ZMQ_ROUTER, config_.peer));
    ASSIGN_OR_RETURN(control_, transport_.connect(ZMQ_DEALER, config_.control, identity_of(config_.id)));
    HelloMessage hello;
    hello.from = config_.id;
    hello.pid = ::getpid();
    hello.host = config_.host;
    hello.peer_endpoint = peer_.endpoint;
    RETURN_IF_ERROR(control_.send(pack(MessageType::kHello, hello)));
    thread_ = std::thread([this] { loop(); });
    return {};
  }

  // The controller's answer to our hello.
  Result<WelcomeMessage> welcome(Deadline deadline) {
    std::unique_lock lock(mutex_);
    while (!welcome_) {
      if (deadline.expired()) {
        return make_error(ErrorCode::kDeadline, "the controller at {} does not answer (wrong key?)",
                          config_.control);
      }
      changed_.wait_for(lock, std::chrono::milliseconds(100));
    }
    return *welcome_;
  }

  Result<std::vector<std::string>> exchange(const std::string& name, int rank, int size,
                                            const std::string& bytes, Deadline deadline) override {
    const uint64_t epoch = executor_->epoch();
    {
      std::scoped_lock lock(mutex_);
      outgoing_.push_back(pack(MessageType::kMeet, MeetMessage{config_.id, epoch, name, rank, size, bytes}));
    }
    poke();
    std::unique_lock lock(mutex_);
    for (;;) {
      if (const auto found = met_.find(name); found != met_.end()) {
        auto all = std::move(found->second);
        met_.erase(found);
        return all;
      }
      if (fence_ > epoch) return make_error(ErrorCode::kAborted, "epoch {} is over", epoch);
      if (deadline.expired()) return make_error(ErrorCode::kDeadline, "not all members came to {}", name);
      changed_.wait_for(lock, std::chrono::milliseconds(std::min<int64_t>(deadline.remaining_ms() + 1, 100)));
    }
  }

 private:
  void poke() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = ::write(wake_, &one, sizeof one);
  }

  void loop() {
    Deadline lease = Deadline::after_ms(config_.lease_ms);
    Deadline beat = Deadline::after_ms(0);
    try {
      while (!stop_) {
        zmq::pollitem_t items[3] = {{control_.zmq.handle(), 0, ZMQ_POLLIN, 0},
                                    {peer_.zmq.handle(), 0, ZMQ_POLLIN, 0},
                                    {nullptr, wake_, ZMQ_POLLIN, 0}};
        zmq::poll(items, 3, std::chrono::milliseconds(beat.remaining_ms()));
        zmq::message_t message;
        while (control_.zmq.recv(message, zmq::recv_flags::dontwait)) {
          lease = Deadline::after_ms(config_.lease_ms);
          on_control(message.to_string_view());
        }
        for (zmq::message_t from; peer_.zmq.recv(from, zmq::recv_flags::dontwait);) {
          if (peer_.zmq.recv(message)) snapshots_.serve(peer_, from.to_string(), message.to_string_view());
        }
        if (items[2].revents != 0) {
          uint64_t count = 0;
          [[maybe_unused]] const ssize_t n = ::read(wake_, &count, sizeof count);
        }
        std::deque<std::string> outgoing;
        {
          std::scoped_lock lock(mutex_);
          outgoing.swap(outgoing_);
        }
        if (beat.expired()) {
          beat = Deadline::after_ms(config_.heartbeat_ms);
          outgoing.push_back(pack(MessageType::kHeartbeat,
                                  HeartbeatMessage{config_.id, executor_->epoch(), executor_->executing()}));
        }
        for (const auto& bytes : outgoing) {
          if (!control_.send(bytes).ok()) leave("the connection to the controller is gone");
        }
        if (lease.expired()) leave("nothing heard of the controller");
      }
    } catch (const zmq::error_t& error) {
      if (!stop_) leave(error.what());
    }
  }

  void on_control(std::string_view message) {
    if (message.empty()) return;
    const std::string_view body = message.substr(1);
    switch (static_cast<MessageType>(message[0])) {
      case MessageType::kWelcome: {
        auto welcome = decode<WelcomeMessage>(body);
        std::scoped_lock lock(mutex_);
        if (welcome.ok()) welcome_ = std::move(welcome).value();
        break;
      }
      case MessageType::kFence: {
        const auto fence = decode<FenceMessage>(body);
        if (!fence.ok()) return;
        {
          std::scoped_lock lock(mutex_);
          fence_ = std::max(fence_, fence->epoch);
          met_.clear();
        }
        executor_->fence(fence->epoch);
        break;
      }
      case MessageType::kMet: {
        auto met = decode<MetMessage>(body);
        std::scoped_lock lock(mutex_);
        if (met.ok()) met_[met->name] = std::move(met->all);
        break;
      }
      case MessageType::kExit:
        leave("");
        break;
      default:
        break;  // kBeat: the lease is renewed, nothing else
    }
    changed_.notify_all();
  }

  // The process ends here and now: what it was doing counts for nobody any more.
  [[noreturn]] void leave(const std::string& why) {
    if (!why.empty()) LOG_WARN("worker {} ends: {}", identity_of(config_.id), why);
    std::_Exit(why.empty() ? 0 : 3);
  }

  const WorkerConfig& config_;
  Transport& transport_;
  Snapshots& snapshots_;
  Executor* executor_ = nullptr;
  Socket control_, peer_;
  int wake_ = -1;
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::string> outgoing_;
  std::optional<WelcomeMessage> welcome_;
  std::map<std::string, std::vector<std::string>> met_;
  uint64_t fence_ = 0;
  std::thread thread_;
};

// The thread that makes snapshots while commands go on.
class SnapshotThread {
 public:
  SnapshotThread(const WorkerConfig& config, Transport& transport, Snapshots& snapshots)
      : config_(config), transport_(transport), snapshots_(snapshots), thread_([this] { loop(); }) {}
  ~SnapshotThread() {
    {
      std::scoped_lock lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  void submit(WatermarkMessage order, Frozen frozen, int64_t freeze_us) {
    {
      std::scoped_lock lock(mutex_);
      jobs_.push_back({std::move(order), std::move(frozen), freeze_us});
    }
    wake_.notify_all();
  }

 private:
  struct Job {
    WatermarkMessage order;
    Frozen frozen;
    int64_t freeze_us = 0;
  };

  void loop() {
    auto results = transport_.connect(ZMQ_PUSH, config_.results);
    for (;;) {
      Job job;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
        if (stop_) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      KeptMessage kept = keep(job);
      if (!results.ok() || !results->send(pack(MessageType::kKept, kept)).ok()) return;
    }
  }

  KeptMessage keep(const Job& job) {
    const WatermarkMessage& order = job.order;
    KeptMessage kept;
    kept.from = config_.id;
    kept.epoch = order.epoch;
    kept.watermark = order.watermark;
    kept.freeze_us = job.freeze_us;
    const std::string own = fmt::format("rank-{}", config_.id.rank);
    Result<void> done;
    try {
      auto replicated = std::make_shared<const std::string>(job.frozen.make_replicated());
      auto per_rank = std::make_shared<const std::string>(job.frozen.make_per_rank());
      kept.replicated_digest = xxh64(*replicated);
      kept.replicated_bytes = replicated->size();
      kept.rank_bytes = per_rank->size();
      snapshots_.put(order.watermark, "replicated", replicated);
      snapshots_.put(order.watermark, own, per_rank);
      snapshots_.drop_before(order.complete);
      if (!order.buddy.empty()) {
        done =
            push_piece(transport_, order.buddy, order.watermark, own, *per_rank, Deadline::after_ms(10'000));
      }
      if (done.ok() && !order.folder.empty()) {  // a full disk does not take what memory has
        Result<void> written;
        if (order.writes_replicated)
          written = write_piece(order.folder + "/replicated", order.watermark, *replicated);
        if (written.ok()) written = write_piece(order.folder + "/" + own, order.watermark, *per_rank);
        kept.durable = written.ok();
        if (!written.ok())
          LOG_WARN("watermark {} is in memory only: {}", order.watermark, written.error().message);
      }
    } catch (const std::exception& error) {
      done = make_error(ErrorCode::kUnavailable, "snapshot: {}", error.what());
    }
    if (!done.ok()) kept.error = done.error().to_string();
    return kept;
  }

  const WorkerConfig& config_;
  Transport& transport_;
  Snapshots& snapshots_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> jobs_;
  bool stop_ = false;
  std::thread thread_;
};

// The first thread: commands in, results out.
class CommandLoop {
 public:
  CommandLoop(const WorkerConfig& config, Transport& transport)
      : config_(config),
        transport_(transport),
        control_(config, transport, snapshots_),
        groups_(control_),
        executor_(groups_),
        snapshot_thread_(config, transport, snapshots_) {}

  Result<void> run() {
    ASSIGN_OR_RETURN(results_, transport_.connect(ZMQ_PUSH, config_.results));
    ASSIGN_OR_RETURN(commands_, transport_.connect(ZMQ_DEALER, config_.commands, identity_of(config_.id)));
    RETURN_IF_ERROR(control_.start(executor_));
    ASSIGN_OR_RETURN(const WelcomeMessage welcome, control_.welcome(Deadline::after_ms(30'000)));
    place_ = Place{welcome.run, welcome.mesh, welcome.shape, config_.id.rank};
    executor_.place(place_);
    for (bool go_on = true; go_on;) {
      zmq::message_t message;
      if (!commands_.zmq.recv(message)) continue;
      ASSIGN_OR_RETURN(go_on, handle(message.to_string_view()));
    }
    return {};
  }

 private:
  Result<bool> handle(std::string_view message) {
    if (message.empty()) return true;
    const std::string_view body = message.substr(1);
    switch (static_cast<MessageType>(message[0])) {
      case MessageType::kExecute:
        return execute(body);
      case MessageType::kDefine: {
        ASSIGN_OR_RETURN(DefineMessage define, decode<DefineMessage>(body));
        executor_.define(define.epoch, define.sequence, std::move(define.value));
        return true;
      }
      case MessageType::kWatermark: {
        ASSIGN_OR_RETURN(WatermarkMessage order, decode<WatermarkMessage>(body));
        if (order.epoch != executor_.epoch() || executor_.fenced()) return true;
        const Stopwatch clock;
        Frozen frozen = executor_.freeze();
        const auto freeze_us = static_cast<int64_t>(clock.seconds() * 1e6);
        snapshot_thread_.submit(std::move(order), std::move(frozen), freeze_us);
        return true;
      }
      case MessageType::kRollback:
        return roll_back(body);
      case MessageType::kFetch: {
        ASSIGN_OR_RETURN(const FetchMessage fetch, decode<FetchMessage>(body));
        return send(pack(MessageType::kFetched,
                         FetchedMessage{config_.id, fetch.sequence, executor_.fetch(fetch.sequence)}));
      }
      case MessageType::kRelease: {
        ASSIGN_OR_RETURN(const ReleaseMessage release, decode<ReleaseMessage>(body));
        for (const uint64_t sequence : release.sequences) executor_.release(sequence);
        return true;
      }
      case MessageType::kExit:
        return false;
      default:
        return make_error(ErrorCode::kInvalid, "a message of type {} on the command channel",
                          int{message[0]});
    }
  }

  // Results go out in batches: when the batch of commands is done, and at the latest after a millisecond.
  Result<bool> execute(std::string_view body) {
    Decoder decoder(body);
    ExecuteMessage header;
    decoder(header);
    const std::string prefix = pack(MessageType::kCompletions, CompletionsMessage{config_.id, header.epoch});
    std::string batch = prefix;
    Stopwatch since;
    Command command;
    for (int n = 0; !decoder.done(); ++n) {
      decoder(command);
      if (!decoder.ok()) return make_error(ErrorCode::kCorrupt, "a batch of commands is damaged");
      const auto outcome = executor_.execute(command, header.epoch);
      if (!outcome) continue;
      encode_to(batch, command.sequence);
      encode_to(batch, *outcome);
      if (batch.size() > 65536 || since.seconds() > 1e-3) {
        ASSIGN_OR_RETURN([[maybe_unused]] const bool sent, send(batch));
        batch = prefix;
        since.restart();
      }
    }
    return batch.size() > prefix.size() ? send(batch) : Result<bool>(true);
  }

  Result<bool> roll_back(std::string_view body) {
    ASSIGN_OR_RETURN(const RollbackMessage order, decode<RollbackMessage>(body));
    if (order.epoch <= executor_.epoch()) return true;  // late: a newer epoch has begun
    snapshots_.drop_after(order.watermark);
    Result<void> restored = restore(order);
    RestoredMessage reply{config_.id, order.epoch, order.watermark,
                          restored.ok() ? "" : restored.error().to_string()};
    return send(pack(MessageType::kRestored, reply));
  }

  Result<void> restore(const RollbackMessage& order) {
    groups_.reset(place_, order.hosts, order.epoch);
    std::map<std::string, Snapshots::Bytes> pieces;
    for (const auto& source : order.sources) {
      Snapshots::Bytes bytes = source.file.empty() ? snapshots_.get(order.watermark, source.name) : nullptr;
      if (bytes == nullptr && !source.file.empty()) {
        ASSIGN_OR_RETURN(std::string read, read_piece(source.file, order.watermark));
        bytes = std::make_shared<const std::string>(std::move(read));
      }
      if (bytes == nullptr) {
        if (source.endpoint.empty())
          return make_error(ErrorCode::kNotFound, "{} is not in memory here", source.name);
        ASSIGN_OR_RETURN(std::string pulled, pull_piece(transport_, source.endpoint, order.watermark,
                                                        source.name, Deadline::after_ms(10'000)));
        bytes = std::make_shared<const std::string>(std::move(pulled));
      }
      snapshots_.put(order.watermark, source.name, bytes);  // now this worker can give it to others
      pieces[source.name] = bytes;
    }
    const auto view = [&](const std::string& name) {
      const auto found = pieces.find(name);
      return found == pieces.end() ? std::string_view() : std::string_view(*found->second);
    };
    return executor_.restore(order.epoch, order.watermark, view("replicated"),
                             view(fmt::format("rank-{}", config_.id.rank)));
  }

  Result<bool> send(std::string_view bytes) {
    RETURN_IF_ERROR(results_.send(bytes));
    return true;
  }

  const WorkerConfig& config_;
  Transport& transport_;
  Snapshots snapshots_;
  ControlThread control_;
  Groups groups_;
  Executor executor_;
  SnapshotThread snapshot_thread_;
  Place place_;
  Socket commands_, results_;
};

}  // namespace

int run_worker(const WorkerConfig& config) {
  Transport transport(config.keys);
  Result<void> done;
  {
    auto loop = std::make_unique<CommandLoop>(config, transport);
    done = loop->run();
    if (!done.ok()) LOG_ERROR("worker {}: {}", identity_of(config.id), done.error().to_string());
    // Threads may be in the middle of a snapshot or a meeting; nobody waits for either any more.
    std::_Exit(done.ok() ? 0 : 1);
  }
}

int worker_main() {
  const auto config = WorkerConfig::from_env();
  if (!config.ok()) {
    LOG_ERROR("{}", config.error().message);
    return 2;
  }
  init_logging("", fmt::format("w{}", config->id.rank));
  return run_worker(*config);
}

}  // namespace flywheel::runtime
