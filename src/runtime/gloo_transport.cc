#include "runtime/collectives_transport_internal.h"

namespace flywheel::runtime {

Result<std::unique_ptr<Transport>> open_gloo_transport(const Group& group) {
  return make_error(ErrorCode::kUnavailable, "{}: this build forms groups on one host only", describe(group));
}

}  // namespace flywheel::runtime
