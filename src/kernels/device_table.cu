#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {

const DeviceTable& device_table() {
  static const DeviceTable table = [] {
    DeviceTable made{};
    add_attention(made);
    add_attention_backward(made);
    add_linear(made);
    add_norm(made);
    return made;
  }();
  return table;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
