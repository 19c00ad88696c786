#include "train/device_of_process.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "base/env.h"
#include "base/file_lock.h"
#include "base/log.h"
#include "base/text.h"

namespace flywheel::train {
namespace {

constexpr int64_t kPatienceMs = 20'000;  // a process that was killed keeps its GPU until its memory is freed

// As other processes know it: CUDA counts from 0 among those that a process may see.
std::string name_of_gpu(int index) {
  const std::vector<std::string> seen = split(env::get("CUDA_VISIBLE_DEVICES"), ',');
  return static_cast<size_t>(index) < seen.size() ? seen[static_cast<size_t>(index)] : std::to_string(index);
}

struct Claim {
  FileLock lock;
  std::unique_ptr<kernels::Device> device;
};

Result<Claim> claim() {
  if (emulates_device()) return Claim{{}, kernels::Device::emulated()};
  const int gpus = kernels::device_count();
  if (gpus == 0) {
    ASSIGN_OR_RETURN(auto none, kernels::Device::open(0));  // says why
    return Claim{{}, std::move(none)};
  }
  const Deadline deadline = Deadline::after_ms(kPatienceMs);
  const std::filesystem::path folder = std::filesystem::temp_directory_path();
  for (std::string why;;) {
    for (int index = 0; index < gpus; ++index) {
      const std::string path = folder / ("flywheel-gpu-" + name_of_gpu(index) + ".lock");
      Result<FileLock> lock = FileLock::take(path, Deadline::after_ms(0));
      if (!lock.ok()) {  // taken, or another user's
        why = lock.error().message;
        continue;
      }
      ASSIGN_OR_RETURN(auto device, kernels::Device::open(index));
      LOG_INFO("this worker computes on GPU {}, {}", name_of_gpu(index), device->name());
      return Claim{std::move(lock).value(), std::move(device)};
    }
    if (deadline.expired()) {
      return make_error(
          ErrorCode::kUnavailable,
          "device: all {} GPUs of this host are taken by other workers ({}); have at most one worker "
          "for each (mesh.data), or end the other run",
          gpus, why);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace

bool emulates_device() {
  return env::get("FLYWHEEL_TEST_DEVICE") == "emulated";
}

Result<kernels::Device*> device_of_this_process() {
  static std::mutex mutex;
  static Claim& held = *new Claim;  // never ended: CUDA may be gone before static values are
  const std::scoped_lock lock(mutex);
  if (held.device == nullptr) {
    ASSIGN_OR_RETURN(held, claim());
  }
  return held.device.get();
}

}  // namespace flywheel::train
