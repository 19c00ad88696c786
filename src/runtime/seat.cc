#include "runtime/seat.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <map>
#include <optional>

#include "base/log.h"
#include "runtime/addresses.h"
#include "runtime/launcher.h"
#include "runtime/seat_messages.h"

namespace flywheel::runtime {
namespace {

constexpr int64_t kBeatMs = 500;
constexpr int64_t kSilenceMs = 4000;      // of the program
constexpr int64_t kWelcomeMs = 3000;      // to be answered at all
constexpr int64_t kStopGraceMs = 15'000;  // after SIGTERM, for the program to end the run

constexpr unsigned kLookMs = 100;     // between two looks for the program
constexpr unsigned kRefusedMs = 500;  // and between two tries when it refuses

std::atomic<int> stop_signal = 0;

// While it lives, SIGTERM and SIGINT are noted.
class NotedSignals {
 public:
  NotedSignals() {
    stop_signal = 0;
    struct sigaction action {};
    action.sa_handler = [](int number) { stop_signal = number; };
    sigaction(SIGTERM, &action, &before_[0]);
    sigaction(SIGINT, &action, &before_[1]);
  }
  ~NotedSignals() {
    sigaction(SIGTERM, &before_[0], nullptr);
    sigaction(SIGINT, &before_[1], nullptr);
  }
  NotedSignals(const NotedSignals&) = delete;
  NotedSignals& operator=(const NotedSignals&) = delete;

 private:
  std::array<struct sigaction, 2> before_{};
};

// tcp://HOST:PORT with the host's IPv4 address in place of its name, as the program there finds it too.
Result<std::string> resolved(const std::string& endpoint, std::string* address) {
  const size_t begin = endpoint.find("://"), colon = endpoint.rfind(':');
  if (!endpoint.starts_with("tcp://") || colon <= begin + 3) {
    return make_error(ErrorCode::kInvalid, "{} is not an endpoint like tcp://10.0.0.1:7400", endpoint);
  }
  ASSIGN_OR_RETURN(*address, resolve_for_others(endpoint.substr(begin + 3, colon - begin - 3)));
  return "tcp://" + *address + endpoint.substr(colon);
}

// One connection to the program, from being welcomed to its end or loss.
class Session {
 public:
  Session(const SeatOptions& options, const JoinPoint& point, int number)
      : options_(options), point_(point), number_(number), transport_(point.keys) {}

  // The exit code that the program gave; kPeerLost when it is gone or was not there.
  Result<int> run() {
    std::string program;
    ASSIGN_OR_RETURN(const std::string endpoint, resolved(point_.endpoint, &program));
    TakeSeat take{.seat = options_.seat, .seats = options_.seats, .host = host_name(), .address = {}};
    ASSIGN_OR_RETURN(take.address, address_facing(program));
    const std::string identity = fmt::format("{}/{}/{}/{}", options_.seat, take.host, ::getpid(), number_);
    ASSIGN_OR_RETURN(socket_, transport_.connect(ZMQ_DEALER, endpoint, identity));
    socket_.zmq.set(zmq::sockopt::linger, 500);
    RETURN_IF_ERROR(socket_.send(seat_message(SeatMessage::kTake, take)));
    Deadline silence = Deadline::after_ms(kWelcomeMs), beat = Deadline::after_ms(kBeatMs);
    for (;;) {
      if (stop_signal != 0 && !stop_by_) stop_by_ = Deadline::after_ms(welcomed_ ? kStopGraceMs : 0);
      if (stop_by_ && stop_by_->expired()) return 128 + stop_signal;
      if (silence.expired()) {
        return make_error(ErrorCode::kPeerLost, "{} at {}",
                          welcomed_ ? "the program went silent" : "nobody answers", point_.endpoint);
      }
      if (beat.expired() && welcomed_) {
        (void)socket_.send(seat_message(SeatMessage::kBeat));
        beat = Deadline::after_ms(kBeatMs);
      }
      report_ended();
      const Result<std::string> message = socket_.receive(Deadline::after_ms(20));
      if (!message.ok()) {
        // A signal interrupts it too.
        if (message.error().code != ErrorCode::kDeadline && stop_signal == 0) return message.error();
        continue;
      }
      silence = Deadline::after_ms(kSilenceMs);
      ASSIGN_OR_RETURN(const std::optional<int> end, handle(*message));
      if (end) return *end;
    }
  }
  bool welcomed() const { return welcomed_; }

 private:
  Result<std::optional<int>> handle(std::string_view message) {
    if (message.empty()) return std::optional<int>();
    const std::string_view body = message.substr(1);
    switch (static_cast<SeatMessage>(message[0])) {
      case SeatMessage::kWelcome:
        if (!welcomed_)
          LOG_INFO("seat {} of {} is taken, at {}", options_.seat, options_.seats, point_.endpoint);
        welcomed_ = true;
        break;
      case SeatMessage::kRefused:
        return make_error(ErrorCode::kDenied, "{}", body);
      case SeatMessage::kStart: {
        ASSIGN_OR_RETURN(const StartAtSeat order, decode<StartAtSeat>(body));
        start(order);
        break;
      }
      case SeatMessage::kKill: {
        ASSIGN_OR_RETURN(const auto id, decode<uint64_t>(body));
        workers_.erase(id);
        break;
      }
      case SeatMessage::kEnd: {
        ASSIGN_OR_RETURN(const auto code, decode<int>(body));
        workers_.clear();
        (void)socket_.send(seat_message(SeatMessage::kLeft));
        return std::optional<int>(code);
      }
      default:
        break;  // a beat
    }
    return std::optional<int>();
  }

  void start(const StartAtSeat& order) {
    WorkerSpec spec{order.name, Host{}, {}};
    for (const std::string& entry : order.env) {
      const size_t equals = entry.find('=');
      if (equals != std::string::npos) spec.env[entry.substr(0, equals)] = entry.substr(equals + 1);
    }
    auto launcher = make_local_launcher({.command = options_.command, .log_folder = order.log_folder});
    auto started = launcher->start(spec);
    if (started.ok()) {
      workers_[order.id] = std::move(started).value();
    } else {
      (void)socket_.send(
          seat_message(SeatMessage::kEnded, EndedAtSeat{order.id, 127, 0, started.error().message}));
    }
  }

  void report_ended() {
    for (auto worker = workers_.begin(); worker != workers_.end();) {
      const auto status = worker->second->ended();
      if (!status) {
        ++worker;
        continue;
      }
      const EndedAtSeat ended{worker->first, status->exit_code, status->signal, worker->second->last_words()};
      (void)socket_.send(seat_message(SeatMessage::kEnded, ended));
      worker = workers_.erase(worker);
    }
  }

  const SeatOptions& options_;
  const JoinPoint& point_;
  const int number_;
  Transport transport_;
  Socket socket_;
  bool welcomed_ = false;
  std::optional<Deadline> stop_by_;
  std::map<uint64_t, std::unique_ptr<WorkerProcess>> workers_;
};

}  // namespace

Result<int> run_seat(const SeatOptions& options) {
  const NotedSignals signals;
  Error why{ErrorCode::kDeadline, "it was not looked for"};
  int sessions = 0;
  for (Deadline patience = Deadline::after_ms(options.patience_ms); !patience.expired();) {
    if (stop_signal != 0) return 128 + stop_signal;
    const Result<JoinPoint> point = options.find();
    if (!point.ok()) {
      why = point.error();
      ::usleep(kLookMs * 1000);
      continue;
    }
    Session session(options, *point, sessions++);
    const Result<int> ended = session.run();
    if (ended.ok()) return *ended;
    why = ended.error();
    ::usleep((why.code == ErrorCode::kDenied ? kRefusedMs : kLookMs) * 1000);
    if (!session.welcomed()) continue;
    LOG_WARN("seat {}: {}; its workers end, and it looks for it again", options.seat, why.message);
    patience = Deadline::after_ms(options.patience_ms);
  }
  return make_error(why.code == ErrorCode::kDenied ? why.code : ErrorCode::kDeadline,
                    "rank {} of {} found no program to work for within {} s: {}", options.seat, options.seats,
                    options.patience_ms / 1000, why.message);
}

}  // namespace flywheel::runtime
