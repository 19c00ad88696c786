// Workers of processes that somebody else started: the side of the program that drives them (the other is
// seat.h). mpirun, torchrun, a Kubernetes Job or Ray keep N processes alive; each takes its seat here, and
// workers are started at seats. A seat whose process is started again is taken again; what ran there counts
// as lost, and goes to another seat if this one stays empty.
//
// Ownership: shared by whoever uses it and by the processes that it started; end() or the last one to go
// tells the seats to end. Threads: any; one of its own talks to the seats. Errors: kDeadline when seats stay
// empty, saying which.
//
//   ASSIGN_OR_RETURN(auto seats, Seats::open({.seats = 4, .own = 0, .address = "10.0.0.1", .join_file =
//   path})); ASSIGN_OR_RETURN(std::vector<Host> hosts, seats->wait_for_all(Deadline::after_ms(60'000)));
//   options.launcher = seats->launcher({.log_folder = folder});
//   ...
//   seats->end(0);
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "runtime/join_point.h"
#include "runtime/launcher.h"
#include "runtime/seat_messages.h"

namespace flywheel::runtime {

struct SeatsOptions {
  int seats = 1;
  int own = -1;               // the seat of this process: its workers are this process's children; -1: none
  std::string address;        // of this machine, for the others
  int port = 0;               // 0: any
  Keys keys;                  // none: new ones
  std::string join_file;      // written there for the others; empty: they know
  int64_t empty_ms = 20'000;  // how long a worker waits for a seat that has become empty
  // Called ten times a second until all seats are taken: an error ends the wait (whoever was to start them
  // says that it cannot).
  std::function<Result<void>()> watch;
};

class Seats : public std::enable_shared_from_this<Seats> {
 public:
  static Result<std::shared_ptr<Seats>> open(SeatsOptions options);
  ~Seats();
  Seats(const Seats&) = delete;
  Seats& operator=(const Seats&) = delete;

  // One host for each seat.
  Result<std::vector<Host>> wait_for_all(Deadline deadline);
  std::unique_ptr<Launcher> launcher(const LocalLauncherOptions& local);
  // All seats end with this exit code, also those that come later; the first call counts.
  void end(int exit_code);
  int taken() const;

 private:
  friend class SeatLauncher;
  friend class SeatProcess;
  // One worker at a seat.
  struct Started {
    uint64_t id = 0;
    int seat = -1;
    StartAtSeat order;
    bool sent = false;
    Stopwatch since_sent;
    Deadline wait = Deadline::never();  // for the seat, while it is empty
    std::optional<ExitStatus> ended;
    std::string words;
    int event = -1;
  };
  struct Seat {
    bool taken = false;
    std::string identity;
    Host host;
    Stopwatch heard;
  };

  explicit Seats(SeatsOptions options);
  Result<void> start();
  void loop();
  void on_message(const std::string& identity, std::string_view message);
  void on_take(const std::string& identity, const TakeSeat& take);
  void on_ended(const EndedAtSeat& ended);
  void leave(int seat, const std::string& why);
  void look_at_time();
  void send_start(Started& started);
  void finish(Started& started, const ExitStatus& status, const std::string& words);
  std::shared_ptr<Started> add(int seat, StartAtSeat order);
  void remove(const std::shared_ptr<Started>& started);
  Host place(const Host& host, int failed);

  const SeatsOptions options_;
  std::unique_ptr<Transport> transport_;
  Socket socket_;
  JoinFile join_file_;
  mutable std::mutex mutex_;  // all below
  std::condition_variable changed_;
  std::vector<Seat> seats_;
  std::map<uint64_t, std::shared_ptr<Started>> started_;
  std::vector<std::pair<std::string, std::string>> outbox_;  // identity, message: the thread sends them
  std::vector<int> failed_;                                  // starts, by seat
  // At the own seat; of the thread that starts workers.
  std::shared_ptr<int> own_workers_ = std::make_shared<int>(0);
  uint64_t next_id_ = 1;
  bool stop_ = false;
  std::optional<int> ended_;  // with this exit code
  int wake_ = -1;
  std::thread thread_;
};

}  // namespace flywheel::runtime
