// The GPU of a worker's process. Workers of one host that compute on GPUs take one each: the first that no
// other process has taken, by a lock that the kernel gives back however a process ends. So a worker that
// replaces another needs to know nothing of the others, and two runs do not share a GPU.
//
// Ownership: the process, for as long as it lives. Threads: any may ask; the device is for one at a time.
// Errors: kUnavailable: no GPU, a build without CUDA, or none that is free.
//
//   ASSIGN_OR_RETURN(kernels::Device * device, device_of_this_process());
#pragma once

#include "base/result.h"
#include "kernels/device.h"

namespace flywheel::train {

Result<kernels::Device*> device_of_this_process();

// FLYWHEEL_TEST_DEVICE=emulated, for tests: the device's code runs on CPU cores.
bool emulates_device();

}  // namespace flywheel::train
