#include "model/sentencepiece_charsmap.h"

#include <cstring>

#include "model/unicode.h"

namespace flywheel::model {

Result<Charsmap> Charsmap::parse(std::string_view precompiled) {
  uint32_t trie_bytes = 0;
  if (precompiled.size() >= 4) std::memcpy(&trie_bytes, precompiled.data(), 4);
  if (precompiled.size() < 4 || trie_bytes % 4 != 0 || trie_bytes > precompiled.size() - 4 ||
      trie_bytes == 0) {
    return make_error(ErrorCode::kInvalid, "precompiled_charsmap: a trie of {} bytes in a table of {}",
                      trie_bytes, precompiled.size());
  }
  auto units = std::make_shared<std::vector<uint32_t>>(trie_bytes / 4);
  std::memcpy(units->data(), precompiled.data() + 4, trie_bytes);
  Charsmap map;
  map.units_ = std::move(units);
  map.replacements_ = std::make_shared<std::string>(precompiled.substr(4 + trie_bytes));
  return map;
}

// A unit: bit 31 set: the value of a leaf; else bits 0-7 the label, bit 8 "has a leaf", bits 10-30 the offset
// to the children, shifted by 8 more where bit 9 is set.
Charsmap::Match Charsmap::find(std::string_view text, bool stop_at_first) const {
  const std::vector<uint32_t>& units = *units_;
  const auto offset_of = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  Match best;
  size_t node = offset_of(units[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    node ^= byte;
    if (node >= units.size()) break;
    const uint32_t unit = units[node];
    if ((unit & ((1u << 31) | 0xFF)) != byte) break;
    node ^= offset_of(unit);
    if (!(unit >> 8 & 1)) continue;
    if (node >= units.size()) break;
    const size_t at = units[node] & ((1u << 31) - 1);
    if (at >= replacements_->size()) break;
    const std::string_view rest = std::string_view(*replacements_).substr(at);
    best = {i + 1, rest.substr(0, rest.find('\0'))};
    if (stop_at_first) break;
  }
  return best;
}

Charsmap::Match Charsmap::longest(std::string_view text, size_t at) const {
  return find(text.substr(at), false);
}
Charsmap::Match Charsmap::shortest(std::string_view text) const {
  return find(text, true);
}

void Charsmap::apply(AlignedText& text, bool by_grapheme) const {
  if (by_grapheme) {
    apply_by_grapheme(text);
  } else {
    apply_longest(text);
  }
}

void Charsmap::apply_longest(AlignedText& text) const {
  Rewriter rewriter(text);
  for (size_t at = 0; at < text.text.size();) {
    const Match match = longest(text.text, at);
    const size_t size = match.size > 0 ? match.size : decode_utf8(text.text, at).size_bytes;
    if (match.size > 0) {
      rewriter.replace(at, at + size, match.replacement);
    } else {
      rewriter.keep(at, at + size);
    }
    at += size;
  }
  rewriter.finish();
}

void Charsmap::apply_by_grapheme(AlignedText& text) const {
  constexpr size_t kLongestGrapheme = 5;
  Rewriter rewriter(text);
  const std::string_view all = text.text;
  for (size_t at = 0; at < all.size();) {
    const size_t cluster = grapheme_size(all, at);
    const Match whole = cluster <= kLongestGrapheme ? shortest(all.substr(at, cluster)) : Match{};
    if (whole.size > 0) {
      rewriter.replace(at, at + cluster, whole.replacement);
    } else {
      for (size_t i = at; i < at + cluster;) {
        const size_t size = decode_utf8(all, i).size_bytes;
        const Match one = shortest(all.substr(i, size));
        if (one.size > 0) {
          rewriter.replace(i, i + size, one.replacement);
        } else {
          rewriter.keep(i, i + size);
        }
        i += size;
      }
    }
    at += cluster;
  }
  rewriter.finish();
}

Result<std::string> decode_base64(std::string_view text) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (c == '=') break;
    if (value < 0) return make_error(ErrorCode::kInvalid, "not base64: byte {}", static_cast<int>(c));
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>(bits >> count & 0xFF);
    }
  }
  return out;
}

}  // namespace flywheel::model
