// Waiting awake for what is about to come.
//
// Waking a thread takes 20 to 30 us where the core sleeps too, as long as a command and its result take
// otherwise. So who waits for one stays awake for a moment first. Where all cores are busy that moment is
// nothing beside the milliseconds for which they compute.
//
//   if (!stay_awake([&] { return call.done.load(); })) sleep_until_done();
#pragma once

#include "base/cpu.h"
#include "base/deadline.h"
#include "runtime/shm_signal_internal.h"

namespace flywheel::runtime {

// True as soon as ready() is; false when it was not in time.
template <typename Ready>
bool stay_awake(const Ready& ready) {
  constexpr double kSeconds = 100e-6;
  static const bool alone = usable_cores() == 1;  // who is waited for needs the core
  if (alone) return ready();
  for (const Stopwatch waited; waited.seconds() < kSeconds; cpu_relax()) {
    if (ready()) return true;
  }
  return false;
}

}  // namespace flywheel::runtime
