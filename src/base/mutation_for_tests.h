// For tests of parsers: text that was sound, changed here and there.
//
//   mutate(text, rng, {.alphabet = "{}[]:,", .most_edits = 4, .most_inserted = 20, .most_erased = 6});
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/philox.h"

namespace flywheel {

struct Mutation {
  std::string_view alphabet;  // what means something to the parser
  uint64_t most_edits = 1;
  uint64_t most_inserted = 1, most_erased = 1;  // of one edit; these bounds are not reached
};

inline void mutate(std::string& text, Philox& rng, const Mutation& how) {
  for (uint64_t n = 1 + rng.below(how.most_edits); n > 0 && !text.empty(); --n) {
    const size_t at = rng.below(text.size());
    switch (rng.below(4)) {
      case 0:
        text[at] = static_cast<char>(rng.next_u32());
        break;
      case 1:
        text[at] = how.alphabet[rng.below(how.alphabet.size())];
        break;
      case 2:
        text.insert(at, text.substr(rng.below(text.size()), rng.below(how.most_inserted)));
        break;
      default:
        text.erase(at, rng.below(how.most_erased));
        break;
    }
  }
}

}  // namespace flywheel
