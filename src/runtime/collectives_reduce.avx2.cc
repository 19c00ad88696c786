#include "runtime/collectives_reduce_internal.h"

namespace flywheel::runtime {

void reduce_avx2(Element element, Reduce reduce, void* out, void* also, const void* const* in, int n,
                 int64_t count);

void reduce_avx2(Element element, Reduce reduce, void* out, void* also, const void* const* in, int n,
                 int64_t count) {
  reduce_elements<8>(element, reduce, out, also, in, n, count);
}

}  // namespace flywheel::runtime
