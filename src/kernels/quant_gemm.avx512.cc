// GCC 12 takes the intrinsics' own "undefined" registers for a mistake of ours (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "kernels/quant_gemm_internal.h"

namespace flywheel::kernels {

const QuantTable& quant_table_avx512() {
  static constexpr QuantTable kTable = make_quant_table<Avx512>();
  return kTable;
}

}  // namespace flywheel::kernels
