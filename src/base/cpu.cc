#include "base/cpu.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/env.h"
#include "base/result.h"

namespace flywheel {

namespace {

constexpr const char* kAvx512Parts[] = {"F", "BW", "VL", "DQ", "VBMI", "VNNI", "BF16"};

}  // namespace

std::vector<std::string> missing_avx512() {
#if defined(__x86_64__)
  const bool has[] = {__builtin_cpu_supports("avx512f") != 0,    __builtin_cpu_supports("avx512bw") != 0,
                      __builtin_cpu_supports("avx512vl") != 0,   __builtin_cpu_supports("avx512dq") != 0,
                      __builtin_cpu_supports("avx512vbmi") != 0, __builtin_cpu_supports("avx512vnni") != 0,
                      __builtin_cpu_supports("avx512bf16") != 0};
  static_assert(std::size(has) == std::size(kAvx512Parts));
#else
  const bool has[std::size(kAvx512Parts)] = {};
#endif
  std::vector<std::string> missing;
  for (size_t i = 0; i < std::size(has); ++i) {
    if (!has[i]) missing.emplace_back(kAvx512Parts[i]);
  }
  return missing;
}

std::string describe_missing_avx512(const std::vector<std::string>& missing) {
  if (missing.empty()) return "";
  if (missing.size() == std::size(kAvx512Parts)) return "the processor has no AVX-512";
  std::string list;
  for (const std::string& part : missing) list += (list.empty() ? "" : ", ") + part;
  return "of AVX-512 the processor lacks " + list + ", which its kernels need";
}

Isa machine_isa() {
#if defined(__x86_64__)
  if (missing_avx512().empty()) return Isa::kAvx512;
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
