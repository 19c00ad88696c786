// flywheel seat: one of RANK of WORLD_SIZE processes that others keep alive (Ray's actors) and that start
// workers for the program that wrote FLYWHEEL_JOIN_FILE (runtime/seat.h).
#include <sys/prctl.h>

#include <csignal>
#include <string_view>

#include "base/env.h"
#include "cli.h"
#include "runtime/rank_environment.h"
#include "runtime/seat.h"

namespace flywheel::cli {
namespace {

constexpr int64_t kPatienceMs = 60'000;

int verb_seat(const std::vector<std::string>& args) {
  if (!args.empty()) throw UserError("flywheel seat", "takes no arguments; --on ray starts it");
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // it ends with the actor whose child it is
  const std::string file = env::get("FLYWHEEL_JOIN_FILE");
  if (file.empty()) throw UserError("flywheel seat", "FLYWHEEL_JOIN_FILE is not set; --on ray starts it");
  // Ray's driver sets these two; whatever else says a rank is left over from what started Ray itself.
  const auto set_by_driver = [](const char* name) {
    return name == std::string_view("RANK") || name == std::string_view("WORLD_SIZE") ? env::get(name) : "";
  };
  const auto ranks = runtime::read_rank_environment(set_by_driver).value_or_throw("flywheel seat");
  return runtime::run_seat({.seat = ranks.rank,
                            .seats = ranks.size,
                            .find = [&] { return runtime::read_join_file(file); },
                            .patience_ms = kPatienceMs})
      .value_or_throw("flywheel seat");
}

REGISTER_HIDDEN_VERB(seat, verb_seat);

}  // namespace
}  // namespace flywheel::cli
