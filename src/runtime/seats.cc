#include "runtime/seats.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <array>
#include <csignal>

#include "base/log.h"
#include "runtime/addresses.h"
#include "runtime/places_internal.h"

namespace flywheel::runtime {
namespace {

constexpr double kSilentSeconds = 4;  // of a seat: it is empty then
constexpr double kBusySeconds = 1.5;  // a seat heard of since is not given to another process
constexpr int64_t kGoodbyeMs = 3000;  // for all seats to hear that it is over

void signal_event(int event) {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(event, &one, sizeof one);
}

}  // namespace

// A worker at another process's seat.
class SeatProcess : public WorkerProcess {
 public:
  SeatProcess(std::shared_ptr<Seats> seats, std::shared_ptr<Seats::Started> started)
      : seats_(std::move(seats)), started_(std::move(started)) {}
  ~SeatProcess() override {
    seats_->remove(started_);
    ::close(started_->event);
  }
  std::string describe() const override {
    return fmt::format("worker {} at seat {}", started_->id, started_->seat);
  }
  std::optional<ExitStatus> ended() override {
    std::scoped_lock lock(seats_->mutex_);
    return started_->ended;
  }
  int exit_fd() const override { return started_->event; }
  void kill() override { seats_->remove(started_); }
  std::string last_words() const override {
    std::scoped_lock lock(seats_->mutex_);
    return started_->words;
  }

 private:
  std::shared_ptr<Seats> seats_;
  std::shared_ptr<Seats::Started> started_;
};

// Those at the program's own seat are its own children.
class SeatLauncher : public Launcher {
 public:
  SeatLauncher(std::shared_ptr<Seats> seats, const LocalLauncherOptions& local)
      : seats_(std::move(seats)), log_folder_(local.log_folder), local_(make_local_launcher(local)) {}
  Host place(const Host& host, int failed) override { return seats_->place(host, failed); }
  Result<std::unique_ptr<WorkerProcess>> start(const WorkerSpec& spec) override {
    if (spec.host.seat == seats_->options_.own) {
      ASSIGN_OR_RETURN(auto process, local_->start(spec));
      return std::unique_ptr<WorkerProcess>(
          std::make_unique<CountedProcess>(std::move(process), seats_->own_workers_));
    }
    StartAtSeat order{.name = spec.name, .log_folder = log_folder_};
    for (const auto& [name, value] : spec.env) order.env.push_back(name + "=" + value);
    return std::unique_ptr<WorkerProcess>(
        std::make_unique<SeatProcess>(seats_, seats_->add(spec.host.seat, std::move(order))));
  }
  void finish() override { local_->finish(); }

 private:
  std::shared_ptr<Seats> seats_;
  std::string log_folder_;
  std::unique_ptr<Launcher> local_;
};

Seats::Seats(SeatsOptions options)
    : options_(std::move(options)),
      seats_(static_cast<size_t>(options_.seats)),
      failed_(static_cast<size_t>(options_.seats), 0) {}

Result<std::shared_ptr<Seats>> Seats::open(SeatsOptions options) {
  CHECK(options.seats > 0 && options.own < options.seats, "no such seat: {} of {}", options.own,
        options.seats);
  std::shared_ptr<Seats> seats(new Seats(std::move(options)));
  RETURN_IF_ERROR(seats->start());
  return seats;
}

Result<void> Seats::start() {
  Keys keys = options_.keys;
  if (keys.empty()) {
    ASSIGN_OR_RETURN(keys, Keys::make());
  }
  if (options_.own >= 0) {
    Seat& own = seats_[static_cast<size_t>(options_.own)];
    own.taken = true;
    own.host = Host{host_name(), {}, options_.address, options_.own};
  }
  transport_ = std::make_unique<Transport>(keys);
  const std::string port = options_.port == 0 ? "*" : std::to_string(options_.port);
  ASSIGN_OR_RETURN(socket_, transport_->bind(ZMQ_ROUTER, fmt::format("tcp://{}:{}", options_.address, port)));
  if (!options_.join_file.empty()) {
    ASSIGN_OR_RETURN(join_file_, JoinFile::write(options_.join_file, {socket_.endpoint, keys}));
  }
  wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  thread_ = std::thread([this] { loop(); });
  return {};
}

Seats::~Seats() {
  end(1);
  {
    std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  if (wake_ >= 0) signal_event(wake_);
  if (thread_.joinable()) thread_.join();
  if (wake_ >= 0) ::close(wake_);
}

int Seats::taken() const {
  std::scoped_lock lock(mutex_);
  return static_cast<int>(std::ranges::count_if(seats_, [](const Seat& seat) { return seat.taken; }));
}

Result<std::vector<Host>> Seats::wait_for_all(Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto all = [&] { return std::ranges::all_of(seats_, [](const Seat& seat) { return seat.taken; }); };
  while (!all()) {
    if (deadline.expired()) {
      std::string missing;
      for (size_t i = 0; i < seats_.size(); ++i) {
        if (!seats_[i].taken) missing += fmt::format("{}{}", missing.empty() ? "" : ", ", i);
      }
      return make_error(ErrorCode::kDeadline, "of {} processes these did not come in time: {}", seats_.size(),
                        missing);
    }
    changed_.wait_for(lock, std::chrono::milliseconds(std::min<int64_t>(deadline.remaining_ms() + 1, 100)));
    if (!options_.watch) continue;
    lock.unlock();
    const Result<void> goes_on = options_.watch();
    lock.lock();
    if (!goes_on.ok() && !all()) return goes_on.error();
  }
  std::vector<Host> hosts;
  for (const Seat& seat : seats_) hosts.push_back(seat.host);
  return hosts;
}

std::unique_ptr<Launcher> Seats::launcher(const LocalLauncherOptions& local) {
  return std::make_unique<SeatLauncher>(shared_from_this(), local);
}

// Until every seat said that it heard, or is gone.
void Seats::end(int exit_code) {
  std::unique_lock lock(mutex_);
  if (ended_) return;
  ended_ = exit_code;
  if (!thread_.joinable()) return;
  for (const Seat& seat : seats_) {
    if (seat.taken && !seat.identity.empty())
      outbox_.emplace_back(seat.identity, seat_message(SeatMessage::kEnd, exit_code));
  }
  signal_event(wake_);
  const Deadline deadline = Deadline::after_ms(kGoodbyeMs);
  const auto gone = [&] {
    return std::ranges::none_of(seats_,
                                [](const Seat& seat) { return seat.taken && !seat.identity.empty(); });
  };
  while (!gone() && !deadline.expired()) changed_.wait_for(lock, std::chrono::milliseconds(50));
}

// A seat that stays the same where it can: it has the files in its cache. After a start that failed there,
// the one that failed least and has the fewest workers.
Host Seats::place(const Host& host, int failed) {
  std::scoped_lock lock(mutex_);
  if (host.seat < 0) return host;
  const Seat& same = seats_[static_cast<size_t>(host.seat)];
  if (same.taken && same.host.address != host.address) return same.host;  // started again, elsewhere
  if (failed == 0) return host;
  ++failed_[static_cast<size_t>(host.seat)];
  std::vector<PlaceState> states;
  for (size_t i = 0; i < seats_.size(); ++i) states.push_back({seats_[i].taken, failed_[i], 0});
  for (const auto& [id, started] : started_) ++states[static_cast<size_t>(started->seat)].workers;
  if (options_.own >= 0) states[static_cast<size_t>(options_.own)].workers += *own_workers_;
  const auto best = best_place(states);
  return best ? seats_[*best].host : host;
}

std::shared_ptr<Seats::Started> Seats::add(int seat, StartAtSeat order) {
  std::scoped_lock lock(mutex_);
  auto started = std::make_shared<Started>();
  started->id = order.id = next_id_++;
  started->seat = seat;
  started->order = std::move(order);
  started->wait = Deadline::after_ms(options_.empty_ms);
  started->event = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  started_[started->id] = started;
  send_start(*started);
  return started;
}

void Seats::send_start(Started& started) {
  const Seat& seat = seats_[static_cast<size_t>(started.seat)];
  if (!seat.taken || started.sent) return;
  started.sent = true;
  started.since_sent.restart();
  outbox_.emplace_back(seat.identity, seat_message(SeatMessage::kStart, started.order));
  signal_event(wake_);
}

void Seats::remove(const std::shared_ptr<Started>& started) {
  std::scoped_lock lock(mutex_);
  if (started_.erase(started->id) == 0) return;
  const Seat& seat = seats_[static_cast<size_t>(started->seat)];
  if (!started->sent || started->ended || !seat.taken) return;
  outbox_.emplace_back(seat.identity, seat_message(SeatMessage::kKill, started->id));
  signal_event(wake_);
}

void Seats::finish(Started& started, const ExitStatus& status, const std::string& words) {
  if (started.ended) return;
  started.ended = status;
  started.words = words;
  signal_event(started.event);
}

void Seats::loop() {
  sigset_t all;  // signals are for the threads that handle them
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  for (;;) {
    std::vector<std::pair<std::string, std::string>> out;
    {
      std::scoped_lock lock(mutex_);
      look_at_time();
      out.swap(outbox_);
    }
    std::vector<std::string> gone;
    for (const auto& [identity, message] : out) {
      if (!socket_.send_to(identity, message).ok()) gone.push_back(identity);
    }
    {
      std::scoped_lock lock(mutex_);
      for (const std::string& identity : gone) {
        const auto seat = std::ranges::find(seats_, identity, &Seat::identity);
        if (seat != seats_.end()) leave(static_cast<int>(seat - seats_.begin()), "its connection is closed");
      }
      if (stop_) return;
    }
    std::array<zmq::pollitem_t, 2> items = {
        {{socket_.zmq.handle(), 0, ZMQ_POLLIN, 0}, {nullptr, wake_, ZMQ_POLLIN, 0}}};
    zmq::poll(items.data(), items.size(), std::chrono::milliseconds(100));
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t n = ::read(wake_, &count, sizeof count);
    zmq::message_t identity, message;
    while (socket_.zmq.recv(identity, zmq::recv_flags::dontwait)) {
      if (!socket_.zmq.recv(message)) break;
      std::scoped_lock lock(mutex_);
      on_message(identity.to_string(), message.to_string_view());
    }
  }
}

void Seats::on_message(const std::string& identity, std::string_view message) {
  if (message.empty()) return;
  const std::string_view body = message.substr(1);
  if (static_cast<SeatMessage>(message[0]) == SeatMessage::kTake) {
    if (const auto take = decode<TakeSeat>(body); take.ok()) on_take(identity, *take);
    return;
  }
  const auto seat = std::ranges::find(seats_, identity, &Seat::identity);
  if (seat == seats_.end()) return;  // of a process whose place another has taken
  seat->heard.restart();
  switch (static_cast<SeatMessage>(message[0])) {
    case SeatMessage::kBeat:
      outbox_.emplace_back(identity, seat_message(SeatMessage::kBeat));
      break;
    case SeatMessage::kEnded:
      if (const auto ended = decode<EndedAtSeat>(body); ended.ok()) on_ended(*ended);
      break;
    case SeatMessage::kLeft:
      leave(static_cast<int>(seat - seats_.begin()), "it has ended");
      break;
    default:
      LOG_WARN("a message of type {} from a seat", int{message[0]});
  }
}

void Seats::on_take(const std::string& identity, const TakeSeat& take) {
  const auto refuse = [&](const std::string& why) {
    LOG_WARN("turned away {} ({}): {}", identity, take.address, why);
    outbox_.emplace_back(identity, seat_message(SeatMessage::kRefused, why));
  };
  if (take.version != kSeatProtocolVersion) return refuse("it is another version of the program");
  if (take.seats != options_.seats || take.seat < 0 || take.seat >= options_.seats) {
    return refuse(fmt::format("it is rank {} of {}, and here are {}", take.seat, take.seats, options_.seats));
  }
  if (take.seat == options_.own) return refuse(fmt::format("rank {} is the program itself", take.seat));
  if (ended_) {  // it was away when the others were told
    outbox_.emplace_back(identity, seat_message(SeatMessage::kEnd, *ended_));
    return;
  }
  Seat& seat = seats_[static_cast<size_t>(take.seat)];
  if (seat.taken && seat.heard.seconds() < kBusySeconds) {
    return refuse(fmt::format("rank {} is another process, on {}", take.seat, seat.host.name));
  }
  leave(take.seat, "another process has taken its seat");
  const bool moved = seat.host.address != take.address;
  seat.taken = true;
  seat.identity = identity;
  seat.host = Host{take.host, {}, take.address, take.seat};
  seat.heard.restart();
  outbox_.emplace_back(identity, seat_message(SeatMessage::kWelcome));
  for (const auto& [id, started] : started_) {
    if (started->seat != take.seat || started->ended) continue;
    if (!moved) {
      send_start(*started);
    } else if (!started->sent) {  // what it was told of its address is no longer so
      finish(*started, {255, 0}, fmt::format("rank {} came back at another address", take.seat));
    }
  }
  changed_.notify_all();
}

void Seats::on_ended(const EndedAtSeat& ended) {
  const auto found = started_.find(ended.id);
  if (found != started_.end()) finish(*found->second, {ended.exit_code, ended.signal}, ended.words);
}

void Seats::leave(int seat, const std::string& why) {
  Seat& left = seats_[static_cast<size_t>(seat)];
  if (!left.taken) return;
  left.taken = false;
  left.identity.clear();
  if (!ended_) LOG_WARN("seat {} on {} is empty: {}", seat, left.host.name, why);
  for (const auto& [id, started] : started_) {
    if (started->seat != seat || !started->sent) continue;
    // An order after which nothing was heard may not have arrived: it waits for whoever takes the seat.
    if (started->since_sent.seconds() < left.heard.seconds()) {
      started->sent = false;
      started->wait = Deadline::after_ms(options_.empty_ms);
      continue;
    }
    finish(*started, {255, 0}, fmt::format("rank {} on {}: {}", seat, left.host.name, why));
  }
  changed_.notify_all();
}

void Seats::look_at_time() {
  for (size_t i = 0; i < seats_.size(); ++i) {
    if (seats_[i].taken && !seats_[i].identity.empty() && seats_[i].heard.seconds() > kSilentSeconds)
      leave(static_cast<int>(i), "its process is silent");
  }
  for (const auto& [id, started] : started_) {
    if (!started->sent && started->wait.expired()) {
      finish(*started, {255, 0},
             fmt::format("rank {} has not come back in {} s", started->seat, options_.empty_ms / 1000));
    }
  }
}

}  // namespace flywheel::runtime
