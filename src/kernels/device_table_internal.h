// What each .cu file enters into its device's table (device_table.h).
#pragma once

#include "kernels/device_code.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {

void add_attention(DeviceTable& table);
void add_attention_backward(DeviceTable& table);
void add_linear(DeviceTable& table);
void add_norm(DeviceTable& table);

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
