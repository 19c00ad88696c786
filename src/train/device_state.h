// What a device keeps of a model that it trains: flat buffers, places in them by device_weights.h.
#pragma once

#include "kernels/device.h"

namespace flywheel::train {

struct DeviceState {
  kernels::DeviceBuffer masters, gradients, first_moments, second_moments;  // f32
  kernels::DeviceBuffer copies;                                             // bf16, of the masters
};

}  // namespace flywheel::train
