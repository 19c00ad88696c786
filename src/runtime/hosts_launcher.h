// Workers on hosts behind a prefix (ssh, srun), where a host may be lost: a worker that does not come up
// again on its host is started on another one, the one with the fewest workers, spare hosts first.
//
// Threads: as launcher.h says. Errors: of the local launcher.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/launcher.h"

namespace flywheel::runtime {

struct HostsLauncherOptions {
  LocalLauncherOptions local;
  std::vector<Host> hosts;  // all, with those that have no worker yet
  // Names of those that may be used now; nothing: not known, so all of them. Asked before each start after
  // the first; it must come back soon.
  std::function<std::optional<std::vector<std::string>>()> usable;
};
std::unique_ptr<Launcher> make_hosts_launcher(HostsLauncherOptions options);

}  // namespace flywheel::runtime
