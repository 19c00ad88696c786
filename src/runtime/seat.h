// A seat: a process that somebody else started (a rank of mpirun, a pod, an actor of Ray) and that starts
// workers for the program that drives them (seats.h), one or several, again when one is lost.
//
// It looks for the program until it finds it, and again when that is silent; its workers end in between. It
// ends when the program says so, with the exit code that this says, and when there is no program for so long.
// SIGTERM and SIGINT reach all ranks of a job at once: the program then stops its run in an orderly way and
// says so; a seat ends by itself only if that takes too long.
//
// Threads: one. Errors: kDeadline with why no program was found, kDenied when it refuses this seat.
//
//   ASSIGN_OR_RETURN(const int exit_code, run_seat({.seat = 3, .seats = 4, .find = [&] { return
//   read_join_file(path); }}));
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "runtime/join_point.h"

namespace flywheel::runtime {

struct SeatOptions {
  int seat = 0, seats = 1;
  std::function<Result<JoinPoint>()> find;  // asked until it leads to the program
  int64_t patience_ms = 120'000;            // without a program
  std::vector<std::string> command = {"/proc/self/exe", "worker"};
};

Result<int> run_seat(const SeatOptions& options);

}  // namespace flywheel::runtime
