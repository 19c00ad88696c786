#include "kernels/variant.h"

#include <atomic>

#include "base/check.h"

namespace flywheel::kernels {
namespace {

std::atomic<int>& active() {
  static std::atomic<int> value{static_cast<int>(isa())};
  return value;
}

}  // namespace

Isa active_isa() {
  return static_cast<Isa>(active().load(std::memory_order_relaxed));
}

std::vector<Isa> machine_isas() {
  std::vector<Isa> all;
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= machine_isa()) all.push_back(isa);
  }
  return all;
}

ScopedIsa::ScopedIsa(Isa isa) : before_(active_isa()) {
  CHECK(isa <= machine_isa(), "this machine has no {}", isa_name(isa));
  active().store(static_cast<int>(isa));
}

ScopedIsa::~ScopedIsa() {
  active().store(static_cast<int>(before_));
}

}  // namespace flywheel::kernels
