#include "base/cpu.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

#include "base/env.h"
#include "base/result.h"

namespace flywheel {

Isa machine_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("avx512bf16")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa isa() {
  static const Isa chosen = [] {
    const std::string limit = env::isa_limit();
    Isa cap = Isa::kAvx512;
    if (limit == "baseline") {
      cap = Isa::kBaseline;
    } else if (limit == "avx2") {
      cap = Isa::kAvx2;
    } else if (!limit.empty() && limit != "avx512") {
      throw UserError("FLYWHEEL_ISA", "\"" + limit + "\" is not one of baseline, avx2, avx512");
    }
    return std::min(cap, machine_isa());
  }();
  return chosen;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

double usable_core_seconds() {
  cpu_set_t set;
  double cores = std::max(1u, std::thread::hardware_concurrency());
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");  // cgroup v2: "200000 100000" or "max 100000"
  std::string quota;
  double period = 0;
  if (quota_file >> quota >> period && quota != "max" && period > 0)
    cores = std::min(cores, std::stod(quota) / period);
  return cores;
}

int usable_cores() {
  return std::max(1, static_cast<int>(std::ceil(usable_core_seconds())));
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

}  // namespace flywheel
