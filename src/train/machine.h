// The machine that a plan is made for: what a device can do, and what lies between devices.
//
// Named ones carry the maker's figures (dense, without sparsity; links counted in one direction). The
// efficiencies say what share of them a training step gets; the defaults are those with which a Llama of
// 1.24 billion parameters under torch.compile on one H200 is foretold as it was measured (docs/planning.md).
// measure_machine() measures this one with the house's own functions.
//
//   MachineSpec machine = named_machine("h200").value();
//   MachineSpec own = load_machine("cluster.yaml");           // a file with the keys below
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/config.h"
#include "base/result.h"
#include "base/thread_pool.h"

namespace flywheel::train {

enum class DeviceKind {
  kGpu,  // weights in the compute type, f32 masters with the optimizer
  kCpu,  // the house's trainer: f32 weights beside packed copies (train/parameters.h)
};

struct MachineSpec {
  std::string name = "custom";
  DeviceKind kind = DeviceKind::kGpu;
  double f32_tflops = 0, bf16_tflops = 0, fp8_tflops = 0;  // of a device; fp16 is taken as bf16
  double memory_gb = 0;                                    // of a device
  double reserved_gb = 2;   // the driver's, the libraries' and the allocator's loss
  double memory_gb_s = 0;   // bandwidth of a device's memory
  double host_gb_s = 0;     // from a device to another in the same host, one direction
  double network_gb_s = 0;  // from a device to another host, one direction
  double host_latency_us = 5, network_latency_us = 15;
  double disk_gb_s = 3;  // of a host, read and written in all; its devices share it (offload: nvme)
  int64_t devices_per_host = 8;
  double matrix_efficiency = 0.6, attention_efficiency = 0.4, memory_efficiency = 0.8;
  double overlap = 0.9;  // share of communication with the data axis that hides behind computation
  template <typename V>
  void fields(V& v) {
    v("name", name), v("kind", kind);
    v("f32_tflops", f32_tflops), v("bf16_tflops", bf16_tflops), v("fp8_tflops", fp8_tflops);
    v("memory_gb", memory_gb), v("reserved_gb", reserved_gb), v("memory_gb_s", memory_gb_s);
    v("host_gb_s", host_gb_s), v("network_gb_s", network_gb_s);
    v("host_latency_us", host_latency_us), v("network_latency_us", network_latency_us);
    v("disk_gb_s", disk_gb_s);
    v("devices_per_host", devices_per_host), v("matrix_efficiency", matrix_efficiency);
    v("attention_efficiency", attention_efficiency), v("memory_efficiency", memory_efficiency);
    v("overlap", overlap);
  }
  double usable_bytes() const { return (memory_gb - reserved_gb) * 1e9; }
};

// In upper or lower case. kNotFound names the known ones.
Result<MachineSpec> named_machine(const std::string& name);
std::vector<std::string> machine_names();
// Of a GPU as its driver calls it, "NVIDIA H200"; nothing where no known machine has it.
std::optional<MachineSpec> machine_of_gpu(const std::string& model);
// What the driver calls the first GPU of this host; "" without one.
std::string gpu_of_this_host();
// UserError for a file that lacks what a plan needs.
MachineSpec load_machine(const std::string& path);

// This host, shared out among `workers` processes: cores, memory and bandwidth. Takes about 0.3 s. `record`:
// the file of the highest that was seen (peak_record.h), as other work makes a measurement too low; none:
// what is measured now.
MachineSpec measure_machine(int64_t workers, ThreadPool& pool, const std::string& record = {});

}  // namespace flywheel::train

template <>
struct flywheel::ConfigEnum<flywheel::train::DeviceKind> {
  using Kind = flywheel::train::DeviceKind;
  static constexpr std::array<std::pair<const char*, Kind>, 2> names{
      {{"gpu", Kind::kGpu}, {"cpu", Kind::kCpu}}};
};
