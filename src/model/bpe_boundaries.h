// Where a text may be cut before byte-level BPE: between two characters that no token joins. A merge over the
// cut would make a token that holds what lies on both sides of it, so merging the parts one by one gives what
// merging the whole gives, at a cost that grows with the parts' length alone.
//
// Only neighbours of three bytes each are looked at: kana, Han, Hangul, most scripts of South Asia. Their
// words stand without spaces or are long in bytes, and most pairs of them are in no token.
//
// Threads: immutable after construction. Errors: none; any bytes may be asked about.
//
//   const BpeBoundaries boundaries(texts_of_tokens);
//   for (size_t at = 0, end; at < text.size(); at = end) {
//     end = boundaries.next(text, at);
//     merge(text.substr(at, end - at));
//   }
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace flywheel::model {

class BpeBoundaries {
 public:
  // All that merging can make.
  explicit BpeBoundaries(const std::vector<std::string_view>& tokens);

  // Where the part that begins at `at` ends: at the first boundary after it that no token reaches over, or at
  // the text's end.
  size_t next(std::string_view text, size_t at) const;

 private:
  bool joined(std::string_view text, size_t at) const;

  // What tokens say about the boundary between two characters by the last byte of the left one and the first
  // of the right one: of which lengths the parts in one token are, a bit for each pair of lengths. Mostly
  // both are whole; a token that begins or ends within a character has less of it.
  std::array<std::array<uint16_t, 16>, 64> lengths_{};
  // ... and the parts themselves, hashed to one bit each: a bit set by another pair costs a cut, never a
  // token.
  std::vector<uint64_t> bits_;
  int shift_ = 0;
};

}  // namespace flywheel::model
