#include "kernels/table_instance_internal.h"

namespace flywheel::kernels {

const Table& table_avx2() {
  static constexpr Table kTable = make_table<Avx2>();
  return kTable;
}

}  // namespace flywheel::kernels
