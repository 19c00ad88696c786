#include "train/machine.h"

#include <string.h>  // NOLINT(modernize-deprecated-headers): strcasestr
#include <strings.h>

#include <algorithm>

#include "base/cpu.h"
#include "base/file.h"
#include "base/memory.h"
#include "train/peak_record.h"

namespace flywheel::train {
namespace {

// NVIDIA's data sheets of the SXM boards: NVLink 900 GB/s counts both directions; one 400 Gb/s adapter each.
std::vector<MachineSpec> known_machines() {
  MachineSpec h100{.name = "h100",
                   .f32_tflops = 67,
                   .bf16_tflops = 989.4,
                   .fp8_tflops = 1978.9,
                   .memory_gb = 80,
                   .memory_gb_s = 3350,
                   .host_gb_s = 450,
                   .network_gb_s = 50};
  MachineSpec h200 = h100;
  h200.name = "h200", h200.memory_gb = 141, h200.memory_gb_s = 4800;
  return {h100, h200};
}

}  // namespace

std::vector<std::string> machine_names() {
  std::vector<std::string> names;
  for (const MachineSpec& machine : known_machines()) names.push_back(machine.name);
  return names;
}

Result<MachineSpec> named_machine(const std::string& name) {
  std::string known;
  for (const MachineSpec& machine : known_machines()) {
    if (::strcasecmp(machine.name.c_str(), name.c_str()) == 0) return machine;
    known += (known.empty() ? "" : ", ") + machine.name;
  }
  return make_error(ErrorCode::kNotFound, "no machine is called {}; known are {}, `this`, or a YAML file",
                    name, known);
}

std::optional<MachineSpec> machine_of_gpu(const std::string& model) {
  for (const MachineSpec& machine : known_machines()) {
    if (::strcasestr(model.c_str(), machine.name.c_str()) != nullptr) return machine;
  }
  return std::nullopt;
}

// Without CUDA, whose context would cost the controller a second and the GPU some memory.
std::string gpu_of_this_host() {
  constexpr const char* kDriver = "/proc/driver/nvidia/gpus";
  constexpr std::string_view kModel = "Model:";
  const auto gpus = list_folder(kDriver);
  if (!gpus.ok() || gpus->empty()) return "";
  const auto text = read_file(fmt::format("{}/{}/information", kDriver, gpus->front()));
  if (!text.ok() || !text->starts_with(kModel)) return "";
  const size_t begin = text->find_first_not_of(" \t", kModel.size());
  return begin == std::string::npos ? "" : text->substr(begin, text->find('\n') - begin);
}

MachineSpec load_machine(const std::string& path) {
  const auto machine = load_config<MachineSpec>(path);
  const auto require = [&](bool holds, const char* what) {
    if (!holds) throw UserError(path, what);
  };
  require(machine.f32_tflops > 0 && machine.bf16_tflops > 0, "f32_tflops and bf16_tflops must be set");
  require(machine.memory_gb > machine.reserved_gb && machine.reserved_gb >= 0,
          "memory_gb must be set, and more than reserved_gb");
  require(machine.memory_gb_s > 0, "memory_gb_s must be set");
  require(machine.devices_per_host >= 1, "devices_per_host must be at least 1");
  require(machine.host_gb_s > 0 || machine.devices_per_host == 1, "host_gb_s must be set");
  require(machine.network_gb_s > 0, "network_gb_s must be set");
  require(machine.disk_gb_s > 0, "disk_gb_s must be above 0");
  require(machine.host_latency_us >= 0 && machine.network_latency_us >= 0, "latencies must not be negative");
  const auto share = [](double x) { return x > 0 && x <= 1; };
  require(share(machine.matrix_efficiency) && share(machine.attention_efficiency) &&
              share(machine.memory_efficiency) && machine.overlap >= 0 && machine.overlap <= 1,
          "efficiencies and overlap are shares between 0 and 1");
  return machine;
}

MachineSpec measure_machine(int64_t workers, ThreadPool& pool, const std::string& record) {
  const auto share = static_cast<double>(std::max<int64_t>(1, workers));
  const double read = recorded_peak_read(record, pool) / 1e9;
  MachineSpec m{.name = cpu_model(),
                .kind = DeviceKind::kCpu,
                .f32_tflops = recorded_peak_flops(record, kernels::DType::kF32, pool) / 1e12 / share,
                .bf16_tflops = recorded_peak_flops(record, kernels::DType::kBF16, pool) / 1e12 / share,
                .memory_gb = available_memory_bytes() / 1e9 / share,
                .reserved_gb = 0,
                .memory_gb_s = read / share,
                .devices_per_host = std::max<int64_t>(1, workers)};
  m.fp8_tflops = m.f32_tflops;  // emulated
  // Collectives go through shared memory: every byte is written, read and written again, by all at once.
  m.host_gb_s = read / 3 / share;
  m.network_gb_s = 1.25;  // 10 Gb/s: nothing is measured between hosts
  m.matrix_efficiency = 0.6, m.attention_efficiency = 0.4, m.memory_efficiency = 0.7, m.overlap = 0;
  return m;
}

}  // namespace flywheel::train
