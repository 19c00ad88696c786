#include <sys/mman.h>

#include <cstdint>

#include "base/check.h"
#include "kernels/device_fiber_internal.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__x86_64__)
// Saves what a callee must keep and where the stack is in *save, and goes on where `to` was saved. Ten times
// as fast as swapcontext(), which asks the kernel for the signal mask.
extern "C" void flywheel_switch_stack(void** save, void* to);
asm(R"(
  .text
  .p2align 4
  .type flywheel_switch_stack, @function
flywheel_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size flywheel_switch_stack, .-flywheel_switch_stack
)");
#endif

namespace flywheel::kernels::emulator {
namespace {
constexpr size_t kStackBytes = 256 * 1024;     // of address space: pages that are not touched take no memory
constexpr uint64_t kMark = 0x5ca1ab1e0ddba11;  // at the end of a stack that did not overflow
}  // namespace

struct Fiber::Context {
  std::byte* stack = nullptr;
  void (*entry)() = nullptr;
#if defined(__x86_64__)
  void *own = nullptr, *caller = nullptr;
#else
  ucontext_t own, caller;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void *own_fakes = nullptr, *caller_fakes = nullptr;
  const void* caller_stack = nullptr;
  size_t caller_bytes = 0;
#endif
#if defined(__SANITIZE_THREAD__)
  void *own_thread = nullptr, *caller_thread = nullptr;
#endif

  static thread_local Context* starting;
  static void main() {
    Context& self = *starting;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &self.caller_stack, &self.caller_bytes);
#endif
    self.entry();
    __builtin_trap();
  }
};
thread_local Fiber::Context* Fiber::Context::starting = nullptr;

Fiber::Fiber() = default;
Fiber::Fiber(Fiber&&) noexcept = default;
Fiber& Fiber::operator=(Fiber&&) noexcept = default;
Fiber::~Fiber() {
  if (context_ == nullptr) return;
#if defined(__SANITIZE_THREAD__)
  if (context_->own_thread != nullptr) __tsan_destroy_fiber(context_->own_thread);
#endif
  munmap(context_->stack, kStackBytes);
}

void Fiber::start(void (*entry)()) {
  if (context_ == nullptr) {
    context_ = std::make_unique<Context>();
    void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(stack != MAP_FAILED, "no memory for the stack of an emulated thread");
    context_->stack = static_cast<std::byte*>(stack);
    *reinterpret_cast<uint64_t*>(context_->stack) = kMark;
#if defined(__SANITIZE_THREAD__)
    context_->own_thread = __tsan_create_fiber(0);
#endif
  }
  context_->entry = entry;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(context_->stack, kStackBytes);  // frames that finish() left
#endif
#if defined(__x86_64__)
  // What flywheel_switch_stack() takes from it: six registers, where to go, and above a return address for
  // main().
  auto* top = reinterpret_cast<void**>(context_->stack + kStackBytes - 16);
  top[0] = reinterpret_cast<void*>(&Context::main);
  top[1] = nullptr;
  for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
  context_->own = top - 6;
#else
  getcontext(&context_->own);
  context_->own.uc_stack.ss_sp = context_->stack;
  context_->own.uc_stack.ss_size = kStackBytes;
  context_->own.uc_link = nullptr;
  makecontext(&context_->own, &Context::main, 0);
#endif
}

void Fiber::resume() {
  Context& c = *context_;
  Context::starting = &c;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&c.caller_fakes, c.stack, kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  c.caller_thread = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(c.own_thread, 0);
#endif
#if defined(__x86_64__)
  flywheel_switch_stack(&c.caller, c.own);
#else
  swapcontext(&c.caller, &c.own);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(c.caller_fakes, nullptr, nullptr);
#endif
  CHECK(*reinterpret_cast<const uint64_t*>(c.stack) == kMark,
        "an emulated thread needs more than {} bytes of stack", kStackBytes);
}

void Fiber::suspend() {
  leave(false);
}

void Fiber::finish() {
  leave(true);
  __builtin_trap();
}

void Fiber::leave([[maybe_unused]] bool for_good) {
  Context& c = *context_;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &c.own_fakes, c.caller_stack, c.caller_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(c.caller_thread, 0);
#endif
#if defined(__x86_64__)
  flywheel_switch_stack(&c.own, c.caller);
#else
  swapcontext(&c.own, &c.caller);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(c.own_fakes, &c.caller_stack, &c.caller_bytes);
#endif
}

}  // namespace flywheel::kernels::emulator
