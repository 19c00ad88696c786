// Device::emulated(): memory of the host, and a queue that runs when it is waited for. It fails as a GPU
// would: memory begins as NaN, a write past a buffer's end ends the program, and a graph keeps its arguments.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "kernels/device.h"
#include "kernels/device_code.h"

namespace flywheel::kernels {
namespace {

using Queue = std::vector<std::function<void()>>;

constexpr int64_t kAlignment = 256;
constexpr int64_t kGuard = 256;  // bytes after a buffer, which must stay as they are
constexpr int kGuardByte = 0xa5;

class EmulatedDevice : public Device {
 public:
  explicit EmulatedDevice(int64_t bytes) : free_(bytes) {}

  bool is_emulated() const override { return true; }
  std::string name() const override { return "the emulated device"; }
  int64_t free_bytes() const override { return free_; }
  const DeviceTable& kernels() const override { return emulated::device_table(); }
  DeviceStream stream() const override { return {&work_, nullptr}; }

 private:
  const char* get_memory(void** memory, int64_t bytes, MemoryKind kind) override {
    if (kind == MemoryKind::kDevice && bytes > free_) return "out of memory";
    const auto size = static_cast<size_t>(bytes);
    *memory = ::operator new(size + kGuard, std::align_val_t(kAlignment));
    std::memset(*memory, 0xff, size);
    std::memset(static_cast<char*>(*memory) + bytes, kGuardByte, kGuard);
    if (kind == MemoryKind::kDevice) free_ -= bytes;
    return nullptr;
  }
  void free_memory(void* memory, int64_t bytes, MemoryKind kind) override {
    run();
    const auto* guard = static_cast<const unsigned char*>(memory) + bytes;
    CHECK(std::all_of(guard, guard + kGuard, [](unsigned char byte) { return byte == kGuardByte; }),
          "a kernel wrote past the end of a buffer of {} bytes", bytes);
    ::operator delete(memory, std::align_val_t(kAlignment));
    if (kind == MemoryKind::kDevice) free_ += bytes;
  }
  const char* start_copy(void* to, const void* from, int64_t bytes) override {
    emulator::enqueue(stream(), [=] { std::memmove(to, from, static_cast<size_t>(bytes)); });
    return nullptr;
  }
  const char* upload(void* to, const void* host, int64_t bytes) override {
    if (work_.recording != nullptr) return "a copy of host memory that is not pinned cannot be captured";
    run();
    std::memcpy(to, host, static_cast<size_t>(bytes));
    return nullptr;
  }
  const char* start_fill_zero(void* memory, int64_t bytes) override {
    emulator::enqueue(stream(), [=] { std::memset(memory, 0, static_cast<size_t>(bytes)); });
    return nullptr;
  }
  Result<void> wait() override {
    if (work_.recording != nullptr) {
      return make_error(ErrorCode::kUnavailable, "{}: it cannot be waited for in a capture", name());
    }
    run();
    return {};
  }
  const char* begin_capture() override {
    if (work_.recording != nullptr) return "one is going on";
    work_.recording = new Queue;
    return nullptr;
  }
  const char* end_capture(void** graph) override {
    *graph = std::exchange(work_.recording, nullptr);
    return nullptr;
  }
  const char* start_graph(void* graph) override {
    if (work_.recording != nullptr) return "a capture is going on";
    const auto& kept = *static_cast<Queue*>(graph);
    work_.queue.insert(work_.queue.end(), kept.begin(), kept.end());
    return nullptr;
  }
  void free_graph(void* graph) override { delete static_cast<Queue*>(graph); }

  void run() {
    for (const auto& work : std::exchange(work_.queue, {})) work();
  }

  int64_t free_;
  mutable emulator::EmulatedStream work_;
};

}  // namespace

std::unique_ptr<Device> Device::emulated(int64_t bytes) {
  return std::make_unique<EmulatedDevice>(bytes);
}

}  // namespace flywheel::kernels
