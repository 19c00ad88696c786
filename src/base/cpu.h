// What this processor can do. Kernels choose their variant once, with isa(), outside loops.
#pragma once

#include <string>
#include <vector>

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

// Of the parts of AVX-512 that kAvx512 means, those that the machine lacks: "BF16"; all of them where it has
// no AVX-512.
std::vector<std::string> missing_avx512();
// Why kAvx512 is not used, for a person; empty where nothing is missing.
std::string describe_missing_avx512(const std::vector<std::string>& missing);

// Cores that this process may run on (affinity and cgroup quota).
int usable_cores();
// The processor time that these give in a second, in seconds: less than usable_cores() where a quota is no
// whole number of cores.
double usable_core_seconds();
std::string cpu_model();

}  // namespace flywheel
