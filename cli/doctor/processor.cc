// Cores, instruction sets, GPUs.
#include <fstream>
#include <set>
#include <sstream>

#include "base/cpu.h"
#include "base/env.h"
#include "base/process.h"
#include "doctor/doctor.h"

namespace flywheel::cli::doctor {
namespace {

// As the kernel names them in /proc/cpuinfo.
constexpr const char* kInstructionSets[] = {
    "sse4_2",     "avx2",        "fma",         "f16c",     "avx512f",  "avx512bw", "avx512vl",
    "avx512vbmi", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"};

std::set<std::string> processor_flags() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

}  // namespace

void look_at_processor(Report& report) {
  report.json["cpu"] = cpu_model();
  report.json["cores"] = usable_cores();
  report.json["instruction_set"] = isa_name(isa());
  report.json["machine_instruction_set"] = isa_name(machine_isa());
  const std::set<std::string> flags = processor_flags();
  OrderedJson& sets = report.json["instruction_sets"] = OrderedJson::object();
  std::string has, lacks;
  for (const char* name : kInstructionSets) {
    sets[name] = flags.contains(name);
    std::string& list = flags.contains(name) ? has : lacks;
    list += (list.empty() ? "" : " ") + std::string(name);
  }
  report.lines.emplace_back("processor", fmt::format("{}, {} cores", cpu_model(), usable_cores()));
  const std::vector<std::string> missing = missing_avx512();
  report.json["avx512_missing"] = missing;
  std::string kernels = fmt::format("use {}", isa_name(isa()));
  if (isa() != machine_isa()) {
    kernels += ", held back by FLYWHEEL_ISA";
  } else if (!missing.empty()) {
    kernels += ": " + describe_missing_avx512(missing);
  }
  report.lines.emplace_back("kernels", kernels);
  report.lines.emplace_back("has", has);
  if (!lacks.empty()) report.lines.emplace_back("lacks", lacks);
  if (isa() == Isa::kBaseline) {
    report.problems.push_back(
        {"no AVX2: kernels run their baseline variants, many times slower",
         env::isa_limit().empty() ? "use a processor with AVX2" : "unset FLYWHEEL_ISA"});
  }
}

void look_at_gpus(Report& report) {
  OrderedJson& list = report.json["gpus"] = OrderedJson::array();
  const auto smi =
      run_process({"nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"},
                  {.deadline = Deadline::after_ms(10'000)});
  if (smi.ok() && smi->exit_code == 0) {
    std::istringstream lines(smi->stdout_text);
    for (std::string line; std::getline(lines, line);) list.push_back(line);
  }
#ifdef FLYWHEEL_HAS_CUDA
  report.json["cuda_code"] = true;
#else
  report.json["cuda_code"] = false;
  if (!list.empty()) {
    report.problems.push_back({"a GPU is here but this build has no CUDA code",
                               "install nvcc (CUDA toolkit), remove build/ and run `make build` again"});
  }
#endif
  if (list.empty()) report.lines.emplace_back("GPU", "none");
  for (const auto& gpu : list) report.lines.emplace_back("GPU", gpu.get<std::string>());
}

}  // namespace flywheel::cli::doctor
