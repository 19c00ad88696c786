// Text on its way through a tokenizer: rewritten by normalizers, cut by pre-tokenizers, and still able to say
// which bytes of the original each part came from.
//
// Threads: plain values, one thread each. Offsets cost memory (16 bytes a byte), so they are kept on request.
//
//   AlignedText text = AlignedText::of(original, /*tracked=*/true);
//   Rewriter rewriter(text);
//   rewriter.keep(0, 5), rewriter.replace(5, 6, "\xE2\x96\x81"), rewriter.finish();
//   ByteSpan from = text.origin_of({5, 8});   // {5, 6}
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace flywheel::model {

// Bytes [begin, end) of a text.
struct ByteSpan {
  size_t begin = 0, end = 0;
  size_t size() const { return end - begin; }
  bool operator==(const ByteSpan&) const = default;
};

struct AlignedText {
  std::string text;
  std::vector<ByteSpan> origin;  // one for each byte of text, in order; empty when not tracked
  bool tracked = false;

  static AlignedText of(std::string_view original, bool tracked, size_t begin = 0) {
    AlignedText aligned{std::string(original), {}, tracked};
    for (size_t i = 0; tracked && i < original.size(); ++i) {
      aligned.origin.push_back({begin + i, begin + i + 1});
    }
    return aligned;
  }
  // The original bytes behind a part of the text. Characters that were inserted have an empty origin.
  ByteSpan origin_of(ByteSpan part) const {
    if (!tracked || part.begin >= part.end) return {};
    return {origin[part.begin].begin, std::max(origin[part.begin].begin, origin[part.end - 1].end)};
  }
};

// Builds the next text from the last one, front to back; finish() puts it in place.
class Rewriter {
 public:
  explicit Rewriter(AlignedText& text) : old_(text) {
    next_.tracked = text.tracked;
    next_.text.reserve(text.text.size() + 16);
  }
  size_t written() const { return next_.text.size(); }
  void keep(size_t begin, size_t end) {
    next_.text.append(old_.text, begin, end - begin);
    if (!old_.tracked) return;
    next_.origin.insert(next_.origin.end(), old_.origin.begin() + static_cast<std::ptrdiff_t>(begin),
                        old_.origin.begin() + static_cast<std::ptrdiff_t>(end));
  }
  // `bytes` instead of [begin, end); begin == end inserts, with an empty origin at that place.
  void replace(size_t begin, size_t end, std::string_view bytes) {
    next_.text.append(bytes);
    if (!old_.tracked) return;
    ByteSpan from;
    if (begin < end) {
      from = old_.origin_of({begin, end});
    } else {
      const size_t at = begin < old_.origin.size() ? old_.origin[begin].begin
                        : old_.origin.empty()      ? 0
                                                   : old_.origin.back().end;
      from = {at, at};
    }
    next_.origin.insert(next_.origin.end(), bytes.size(), from);
  }
  void finish() { old_ = std::move(next_); }

 private:
  AlignedText& old_;
  AlignedText next_;
};

}  // namespace flywheel::model
