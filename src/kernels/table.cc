#include "kernels/table_internal.h"

#include "kernels/table_instance_internal.h"
#include "kernels/variant.h"

namespace flywheel::kernels {

const Table& table_baseline() {
  static constexpr Table kTable = make_table<Baseline>();
  return kTable;
}

const Table& table() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::kAvx512:
      return table_avx512();
    case Isa::kAvx2:
      return table_avx2();
    case Isa::kBaseline:
      break;
  }
#endif
  return table_baseline();
}

}  // namespace flywheel::kernels
