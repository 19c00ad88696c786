// out[i] = in[0][i] (+) in[1][i] (+) ... in rank order: the arithmetic of all collectives, in one place.
//
// f32 adds in f32, from the left. bf16 and f16 are widened to f32, reduced, and rounded once (to nearest
// even). Integer sums wrap. Maximum and minimum give NaN where any input has one. Every variant gives the
// same bits, so the choice of instruction set, or the way a message is cut, shows in no result.
#pragma once

#include <cstdint>

#include "base/cpu.h"
#include "runtime/collectives.h"

namespace flywheel::runtime {

// `in`: n >= 1 pointers, each to `count` elements. out may be one of them. `also` (may be null) gets a second
// copy of the result; it overlaps nothing.
using ReduceFn = void (*)(Element element, Reduce reduce, void* out, void* also, const void* const* in, int n,
                          int64_t count);

// The variant for `isa` (at most machine_isa()).
ReduceFn reduce_in_rank_order(Isa isa);

}  // namespace flywheel::runtime
