// The hosts of a config as the runtime wants them: names looked up, what this machine must give them tried.
//
//   const runtime::Cluster cluster = find_hosts(config.mesh);     // UserError naming the key
#pragma once

#include "runtime/cluster.h"
#include "train/config.h"

namespace flywheel::train {

// No hosts in it: workers are on this machine and need no network.
//
// Errors: UserError for an address or port without hosts to use it, for a host that nobody knows, an address
// that is not this machine's where it must be, and a port in use. What is wrong on another host shows when
// its workers are started.
runtime::Cluster find_hosts(const MeshConfig& mesh);

// How many machines are among them.
int64_t count_machines(const runtime::Cluster& cluster);

}  // namespace flywheel::train
