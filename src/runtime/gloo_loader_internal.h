// Finds and loads the module that links Gloo (gloo_module.h), once for the process.
#pragma once

#include "base/result.h"
#include "runtime/gloo_module.h"

namespace flywheel::runtime {

// kUnavailable: the module is not beside the program, or libgloo is not installed.
Result<const FlywheelGlooTable*> load_gloo();

}  // namespace flywheel::runtime
