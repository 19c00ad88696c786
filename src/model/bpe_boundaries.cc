#include "model/bpe_boundaries.h"

#include <algorithm>
#include <bit>

namespace flywheel::model {
namespace {

constexpr size_t kBytes = 3;         // of a character that is looked at
constexpr size_t kBitsPerPair = 16;  // one in so many neighbours is taken for joined without being so

bool is_lead(char c) {
  return (static_cast<unsigned char>(c) & 0xF0) == 0xE0;
}
bool is_continuation(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}
bool is_character(const char* c) {
  return is_lead(c[0]) && is_continuation(c[1]) && is_continuation(c[2]);
}

uint64_t load(const char* bytes, size_t count) {
  uint64_t value = 0;
  for (size_t i = 0; i < count; ++i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}
// The last `left` bytes before a boundary and the first `right` bytes after it, spread over 64 bits.
uint64_t hash_of(uint64_t before, size_t left, uint64_t after, size_t right) {
  return (before | after << 24 | (left * 4 + right) << 48) * 0x9E3779B97F4A7C15ull;
}

// How many bytes of the character before `at` a token has, or 0 where that is not one of three bytes.
size_t length_before(std::string_view token, size_t at) {
  if (at >= kBytes) return is_character(token.data() + at - kBytes) ? kBytes : 0;
  const std::string_view part = token.substr(0, at);
  return std::all_of(part.begin(), part.end(), is_continuation) ? at : 0;
}
size_t length_after(std::string_view token, size_t at) {
  const std::string_view part = token.substr(at, kBytes);
  return is_lead(part[0]) && std::all_of(part.begin() + 1, part.end(), is_continuation) ? part.size() : 0;
}

}  // namespace

BpeBoundaries::BpeBoundaries(const std::vector<std::string_view>& tokens) {
  std::vector<uint64_t> hashes;
  for (const std::string_view token : tokens) {
    for (size_t at = 1; at < token.size(); ++at) {
      if (!is_lead(token[at])) continue;
      const size_t left = length_before(token, at), right = length_after(token, at);
      if (left == 0 || right == 0) continue;
      lengths_[token[at - 1] & 0x3F][token[at] & 0x0F] |=
          static_cast<uint16_t>(1u << ((left - 1) * kBytes + right - 1));
      hashes.push_back(hash_of(load(&token[at - left], left), left, load(&token[at], right), right));
    }
  }
  const size_t size = std::bit_ceil(std::max<size_t>(hashes.size() * kBitsPerPair, 64));
  bits_.assign(size / 64, 0);
  shift_ = 64 - std::countr_zero(size);
  for (const uint64_t hash : hashes) bits_[(hash >> shift_) / 64] |= uint64_t{1} << (hash >> shift_) % 64;
}

size_t BpeBoundaries::next(std::string_view text, size_t at) const {
  if (text.size() - at < 2 * kBytes) return text.size();
  size_t last_end = text.size();  // of the character before, where that is one of three bytes
  while (at + kBytes <= text.size()) {
    if (!is_character(text.data() + at)) {
      ++at;
      continue;
    }
    if (at == last_end && !joined(text, at)) return at;
    last_end = at += kBytes;
  }
  return text.size();
}

bool BpeBoundaries::joined(std::string_view text, size_t at) const {
  const uint64_t before = load(&text[at - kBytes], kBytes), after = load(&text[at], kBytes);
  for (uint32_t lengths = lengths_[before & 0x3F][after >> 16 & 0x0F]; lengths != 0; lengths &= lengths - 1) {
    const auto pair = static_cast<size_t>(std::countr_zero(lengths));
    const size_t left = pair / kBytes + 1, right = pair % kBytes + 1;
    const uint64_t hash =
        hash_of(before & ((uint64_t{1} << left * 8) - 1), left, after >> (kBytes - right) * 8, right);
    if (bits_[(hash >> shift_) / 64] >> (hash >> shift_) % 64 & 1) return true;
  }
  return false;
}

}  // namespace flywheel::model
