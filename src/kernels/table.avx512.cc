// GCC 12 finds its own AVX-512 headers uninitialized (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "kernels/table_instance_internal.h"

namespace flywheel::kernels {

const Table& table_avx512() {
  static constexpr Table kTable = make_table<Avx512>();
  return kTable;
}

}  // namespace flywheel::kernels
