// A call that can stop half-way and go on: the threads of an emulated block (device_emulator.cc).
//
//   Fiber fiber;
//   fiber.start(entry);   // entry() never returns: it ends in finish()
//   fiber.resume();       // from the thread's own stack, until entry calls suspend() or finish()
//
// Threads: start() and resume() on one thread; where it was suspended it must go on in the same thread.
#pragma once

#include <cstddef>
#include <memory>

namespace flywheel::kernels::emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(Fiber&&) noexcept;
  Fiber& operator=(Fiber&&) noexcept;
  void start(void (*entry)());
  void resume();
  void suspend();
  [[noreturn]] void finish();

 private:
  struct Context;
  void leave(bool for_good);
  std::unique_ptr<Context> context_;
};

}  // namespace flywheel::kernels::emulator
