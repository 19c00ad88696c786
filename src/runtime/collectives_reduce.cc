#include "runtime/collectives_reduce.h"

#include "runtime/collectives_reduce_internal.h"

namespace flywheel::runtime {

#if defined(__x86_64__)
// In collectives_reduce.avx2.cc and collectives_reduce.avx512.cc.
void reduce_avx2(Element element, Reduce reduce, void* out, void* also, const void* const* in, int n,
                 int64_t count);
void reduce_avx512(Element element, Reduce reduce, void* out, void* also, const void* const* in, int n,
                   int64_t count);
#endif

namespace {
void reduce_baseline(Element element, Reduce reduce, void* out, void* also, const void* const* in, int n,
                     int64_t count) {
  reduce_elements<4>(element, reduce, out, also, in, n, count);
}
}  // namespace

ReduceFn reduce_in_rank_order(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kBaseline:
      return reduce_baseline;
    case Isa::kAvx2:
      return reduce_avx2;
    case Isa::kAvx512:
      return reduce_avx512;
  }
#endif
  return reduce_baseline;
}

}  // namespace flywheel::runtime
