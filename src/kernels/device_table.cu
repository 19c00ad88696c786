#include "kernels/device_table_internal.h"

namespace flywheel::kernels::FLYWHEEL_DEVICE {

const DeviceTable& device_table() {
  static const DeviceTable table = [] {
    DeviceTable made{};
    add_attention(made);
    add_attention_backward(made);
    add_linear(made);
    add_norm(made);
    add_rope(made);
    add_swiglu(made);
    add_cross_entropy(made);
    add_adamw(made);
    add_embedding(made);
    add_elementwise(made);
    return made;
  }();
  return table;
}

}  // namespace flywheel::kernels::FLYWHEEL_DEVICE
