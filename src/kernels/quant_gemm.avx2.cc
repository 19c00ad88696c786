#include "kernels/quant_gemm_internal.h"

namespace flywheel::kernels {

const QuantTable& quant_table_avx2() {
  static constexpr QuantTable kTable = make_quant_table<Avx2>();
  return kTable;
}

}  // namespace flywheel::kernels
