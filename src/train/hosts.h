// The hosts of a config as the runtime wants them: names looked up, what this machine must give them tried.
//
//   const Hosts hosts = find_hosts(config.mesh);     // UserError naming the key
#pragma once

#include <string>
#include <vector>

#include "runtime/launcher.h"
#include "train/config.h"

namespace flywheel::train {

struct Hosts {
  std::vector<runtime::Host> list;  // none: workers are on this machine and need no network
  std::string address;              // of this machine, for the others
};

// Errors: UserError for a host that nobody knows, an address that is not this machine's where it must be, and
// a port in use. What is wrong on another host shows when its workers are started.
Hosts find_hosts(const MeshConfig& mesh);

}  // namespace flywheel::train
