// flywheel worker: what launchers start, here or on another host. Its configuration comes in the environment
// or on stdin (runtime/worker.h).
#include "cli.h"
#include "runtime/worker.h"

namespace flywheel::cli {
namespace {

int verb_worker(const std::vector<std::string>& args) {
  if (!args.empty()) throw UserError("flywheel worker", "takes no arguments; controllers start it");
  return runtime::worker_main();
}

REGISTER_HIDDEN_VERB(worker, verb_worker);

}  // namespace
}  // namespace flywheel::cli
