// What this processor can do. Kernels choose their variant once, with isa(), outside loops.
#pragma once

#include <string>

namespace flywheel {

enum class Isa {
  kBaseline,
  kAvx2,
  kAvx512
};  // kAvx512 here means F, BW, VL, DQ, VBMI, VNNI and BF16 together

// The best that the machine has and FLYWHEEL_ISA allows.
Isa isa();
// What the machine has, whatever FLYWHEEL_ISA says (tests run every variant up to this).
Isa machine_isa();
const char* isa_name(Isa isa);

// Cores that this process may run on (affinity and cgroup quota).
int usable_cores();
// The processor time that these give in a second, in seconds: less than usable_cores() where a quota is no
// whole number of cores.
double usable_core_seconds();
std::string cpu_model();

}  // namespace flywheel
