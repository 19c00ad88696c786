// Which instruction-set variant the kernels of this process run: base's isa(), unless a test asks for less.
//
// Every kernel's maths is written once over 16 lanes (lanes_internal.h) and instantiated per variant; a
// table of function pointers (table_internal.h) is chosen here, outside loops.
//
//   for (Isa isa : machine_isas()) { ScopedIsa scope(isa); ...check the kernel... }
#pragma once

#include <vector>

#include "base/cpu.h"

namespace flywheel::kernels {

Isa active_isa();
// Every variant that this machine can run, the plainest first.
std::vector<Isa> machine_isas();

// Runs kernels in `isa` until the end of the scope. For tests: not while other threads compute.
class ScopedIsa {
 public:
  explicit ScopedIsa(Isa isa);
  ~ScopedIsa();
  ScopedIsa(const ScopedIsa&) = delete;
  ScopedIsa& operator=(const ScopedIsa&) = delete;

 private:
  Isa before_;
};

}  // namespace flywheel::kernels
