// What each .cu file enters into its device's table (device_table.h).
#pragma once

#include "kernels/device_code.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {

void add_attention(DeviceTable& table);
void add_attention_backward(DeviceTable& table);
void add_linear(DeviceTable& table);
void add_norm(DeviceTable& table);
void add_rope(DeviceTable& table);
void add_swiglu(DeviceTable& table);
void add_cross_entropy(DeviceTable& table);
void add_adamw(DeviceTable& table);
void add_embedding(DeviceTable& table);
void add_elementwise(DeviceTable& table);

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
