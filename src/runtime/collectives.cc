#include "runtime/collectives.h"

namespace flywheel::runtime {

int64_t element_bytes(Element element) {
  switch (element) {
    case Element::kF32:
    case Element::kI32:
      return 4;
    case Element::kBF16:
    case Element::kF16:
      return 2;
    case Element::kI64:
      return 8;
  }
  CHECK(false, "element {}", static_cast<int>(element));
}

const char* element_name(Element element) {
  switch (element) {
    case Element::kF32:
      return "f32";
    case Element::kBF16:
      return "bf16";
    case Element::kF16:
      return "f16";
    case Element::kI32:
      return "i32";
    case Element::kI64:
      return "i64";
  }
  CHECK(false, "element {}", static_cast<int>(element));
}

}  // namespace flywheel::runtime
