#include "kernels/device_emulator.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/thread_pool.h"
#include "kernels/device_fiber_internal.h"

namespace flywheel::kernels::emulator {
namespace {

constexpr int kWarp = 32;
constexpr int64_t kStaticShared = 48 * 1024, kShared = 227 * 1024;  // a block's, on sm_90
constexpr int64_t kMaxThreads = 1024;

using Where = std::source_location;

enum class State { kReady, kInExchange, kAtBarrier, kDone };

struct Thread {
  Dim3 index;
  int number;  // in the block
  State state;
  Where where;         // what it waits at
  unsigned exchanges;  // made so far
};

// Two rounds: who is first may give for the next one while others have not read this one.
struct Warp {
  std::array<std::array<std::byte, kWarp * kExchangeBytes>, 2> given;
  int arrived;
  int bytes;
  Where where;
};

struct Grid {
  const char* kernel;
  Dim3 grid, block;
  int64_t shared_bytes;
  const std::function<void()>* body;
};

// A block, and what a thread of the pool keeps from one to the next.
class Block {
 public:
  void run(const Grid& what, int64_t number);

  const Grid* launch = nullptr;
  Dim3 index;
  Thread* current = nullptr;

  void wait_for_block(Where where);
  const std::byte* exchange(const void* mine, int bytes, Where where);
  void* shared_array(const void* array, int64_t bytes);
  void* dynamic_shared() { return shared_.data() + kStaticShared; }

 private:
  static void thread_main();
  void wait(State state, Where where);
  bool run_ready(size_t warp);
  void release_barrier();
  [[noreturn]] void fail(const std::string& what) const;

  struct alignas(128) Line {
    std::byte bytes[128];
  };
  struct SharedArray {
    const void* array;
    int64_t begin, bytes;
  };
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Fiber> fibers_;
  std::vector<Line> lines_ =
      std::vector<Line>(static_cast<size_t>(kShared + kStaticShared) / sizeof(Line) + 1);
  std::span<std::byte> shared_{lines_[0].bytes,
                               lines_.size() * sizeof(Line)};  // static arrays, then the dynamic
  std::vector<SharedArray> arrays_;
  int64_t static_bytes_ = 0;
  bool backwards_ = false;
};

thread_local Block* running = nullptr;

Block& block() {
  CHECK(running != nullptr && running->current != nullptr, "device code outside of a kernel");
  return *running;
}

std::string text(Where where) {
  const std::string_view file = where.file_name();
  return fmt::format("{}:{}", file.substr(file.rfind('/') + 1), where.line());
}

bool same_line(Where a, Where b) {
  return a.line() == b.line() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

Dim3 place_of(int64_t number, Dim3 size) {
  const int64_t x = number % size.x, y = number / size.x % size.y, z = number / size.x / size.y;
  return {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)};
}

void Block::thread_main() {
  (*running->launch->body)();
  running->current->state = State::kDone;
  running->fibers_[static_cast<size_t>(running->current->number)].finish();
}

void Block::run(const Grid& what, int64_t number) {
  launch = &what, index = place_of(number, what.grid);
  const auto count = static_cast<size_t>(what.block.count());
  threads_.resize(count), warps_.resize(count / kWarp);
  if (fibers_.size() < count) fibers_.resize(count);
  std::memset(dynamic_shared(), 0xff, static_cast<size_t>(what.shared_bytes));
  arrays_.clear(), static_bytes_ = 0;
  for (Warp& warp : warps_) warp.arrived = 0;
  for (size_t i = 0; i < count; ++i) {
    threads_[i] = {place_of(static_cast<int64_t>(i), what.block), static_cast<int>(i), State::kReady, Where(),
                   0};
    fibers_[i].start(thread_main);
  }
  backwards_ = number % 2 == 1;
  Block* const outer = std::exchange(running, this);
  for (;;) {
    for (size_t i = 0; i < warps_.size(); ++i) {
      const size_t warp = backwards_ ? warps_.size() - 1 - i : i;
      while (run_ready(warp)) {
      }
    }
    const auto in = [&](State state) {
      return static_cast<size_t>(
          std::count_if(threads_.begin(), threads_.end(), [&](const Thread& t) { return t.state == state; }));
    };
    if (in(State::kDone) == count) break;
    if (in(State::kAtBarrier) != count) fail("some threads wait for others that do not come");
    release_barrier();
  }
  running = outer;
}

// One turn for each thread of the warp that can go on; false when there was none.
bool Block::run_ready(size_t warp) {
  bool any = false;
  for (size_t i = 0; i < kWarp; ++i) {
    Thread& thread = threads_[warp * kWarp + (backwards_ ? kWarp - 1 - i : i)];
    if (thread.state != State::kReady) continue;
    any = true;
    current = &thread;
    fibers_[static_cast<size_t>(thread.number)].resume();
    current = nullptr;
  }
  return any;
}

void Block::release_barrier() {
  for (Thread& thread : threads_) {
    if (!same_line(thread.where, threads_[0].where)) fail("threads wait at barriers of different lines");
    thread.state = State::kReady;
  }
}

void Block::wait(State state, Where where) {
  current->state = state, current->where = where;
  fibers_[static_cast<size_t>(current->number)].suspend();
}

void Block::wait_for_block(Where where) {
  wait(State::kAtBarrier, where);
}

const std::byte* Block::exchange(const void* mine, int bytes, Where where) {
  CHECK(bytes >= 0 && bytes <= kExchangeBytes, "{} bytes in one exchange of a warp", bytes);
  Thread& thread = *current;
  const int first = thread.number / kWarp * kWarp;
  Warp& warp = warps_[static_cast<size_t>(thread.number / kWarp)];
  auto& given = warp.given[thread.exchanges++ % 2];
  std::memcpy(given.data() + (thread.number - first) * kExchangeBytes, mine, static_cast<size_t>(bytes));
  if (warp.arrived == 0) warp.bytes = bytes, warp.where = where;
  thread.where = where;
  if (warp.bytes != bytes || !same_line(warp.where, where)) fail("lanes of a warp meet at different lines");
  if (++warp.arrived < kWarp) {
    wait(State::kInExchange, where);
  } else {
    warp.arrived = 0;
    for (int lane = 0; lane < kWarp; ++lane)
      threads_[static_cast<size_t>(first + lane)].state = State::kReady;
  }
  return given.data();
}

void* Block::shared_array(const void* array, int64_t bytes) {
  for (const SharedArray& known : arrays_) {
    if (known.array == array) return shared_.data() + known.begin;
  }
  arrays_.push_back({array, static_bytes_, bytes});
  static_bytes_ += (bytes + 15) / 16 * 16;
  CHECK(static_bytes_ <= kStaticShared, "{}: {} bytes of static shared memory, of {}", launch->kernel,
        static_bytes_, kStaticShared);
  CHECK(static_bytes_ + launch->shared_bytes <= kShared, "{}: {} bytes of shared memory, of {}",
        launch->kernel, static_bytes_ + launch->shared_bytes, kShared);
  std::byte* begin = shared_.data() + arrays_.back().begin;
  std::memset(begin, 0xff, static_cast<size_t>(bytes));
  return begin;
}

void Block::fail(const std::string& what) const {
  std::string places;
  const Thread* told = nullptr;
  for (const Thread& thread : threads_) {
    if (told != nullptr && told->state == thread.state && same_line(told->where, thread.where)) continue;
    told = &thread;
    places += fmt::format("; from thread {} on: {}", thread.number,
                          thread.state == State::kDone ? "ended" : text(thread.where));
  }
  CHECK(false, "kernel {}, block {},{},{}: {}{}", launch->kernel, index.x, index.y, index.z, what, places);
  std::abort();
}

}  // namespace

const Dim3& thread_index() {
  return block().current->index;
}
const Dim3& block_index() {
  return block().index;
}
const Dim3& block_size() {
  return block().launch->block;
}
const Dim3& grid_size() {
  return block().launch->grid;
}
int lane() {
  return block().current->number % kWarp;
}
void sync_threads(Where where) {
  block().wait_for_block(where);
}
const std::byte* warp_exchange(const void* mine, int bytes, Where where) {
  return block().exchange(mine, bytes, where);
}
void* static_shared(const void* array, int64_t bytes) {
  return block().shared_array(array, bytes);
}
void* dynamic_shared_bytes() {
  return block().dynamic_shared();
}

void check_aligned(const void* p) {
  CHECK(reinterpret_cast<uintptr_t>(p) % 16 == 0,
        "{}: a vector of 16 bytes at an address that is no multiple of 16",
        running == nullptr ? "on the host" : running->launch->kernel);
}

void enqueue(DeviceStream stream, std::function<void()> work) {
  CHECK(stream.handle != nullptr, "an emulated kernel without a stream");
  auto& todo = *static_cast<EmulatedStream*>(stream.handle);
  (todo.recording != nullptr ? *todo.recording : todo.queue).push_back(std::move(work));
}

void run_grid(const char* kernel, Dim3 grid, Dim3 block_of, int64_t shared_bytes,
              const std::function<void()>& body) {
  const Grid launch{kernel, grid, block_of, shared_bytes, &body};
  CHECK(block_of.count() > 0 && block_of.count() <= kMaxThreads && block_of.count() % kWarp == 0,
        "{}: blocks of {} threads", kernel, block_of.count());
  CHECK(grid.count() > 0 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535,
        "{}: a grid of {} x {} x {}", kernel, grid.x, grid.y, grid.z);
  CHECK(shared_bytes >= 0 && shared_bytes <= kShared, "{}: {} bytes of shared memory, of {}", kernel,
        shared_bytes, kShared);
  compute_pool().parallel_for(grid.count(), 1, [&](int64_t begin, int64_t end) {
    thread_local Block stage;
    for (int64_t number = begin; number < end; ++number) stage.run(launch, number);
  });
}

}  // namespace flywheel::kernels::emulator
