// Whether collectives between hosts can work on this machine, asked before any worker is started: they need a
// library (Gloo) that is loaded when it is first used. Threads: any. Errors: kUnavailable says what is
// missing.
//
//   if (const auto ready = check_host_transport(); !ready.ok()) say(ready.error().message);
#pragma once

#include "base/result.h"

namespace flywheel::runtime {

Result<void> check_host_transport();

}  // namespace flywheel::runtime
