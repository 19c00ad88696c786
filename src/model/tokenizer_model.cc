#include "model/tokenizer_model.h"

#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"

namespace flywheel::model {

Vocabulary::Vocabulary(const std::vector<std::string>& tokens) {
  CHECK(tokens.size() < (size_t{1} << 30), "a vocabulary of {} tokens", tokens.size());
  slots_.assign(std::bit_ceil(tokens.size() * 2 + 2), {0, kNoToken});
  offsets_.push_back(0);
  for (const std::string& token : tokens) {
    if (!token.empty() && find(token) == kNoToken) {
      const uint64_t hash = xxh64(token);
      size_t at = hash & (slots_.size() - 1);
      while (slots_[at].id != kNoToken) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = {static_cast<uint32_t>(hash >> 32), static_cast<TokenId>(offsets_.size() - 1)};
      longest_ = std::max(longest_, token.size());
    }
    bytes_ += token;
    offsets_.push_back(bytes_.size());
  }
}

TokenId Vocabulary::find(std::string_view text) const {
  if (text.empty() || text.size() > longest_) return kNoToken;
  const uint64_t hash = xxh64(text);
  const auto tag = static_cast<uint32_t>(hash >> 32);
  for (size_t at = hash & (slots_.size() - 1);; at = (at + 1) & (slots_.size() - 1)) {
    const Slot slot = slots_[at];
    if (slot.id == kNoToken) return kNoToken;
    if (slot.tag == tag && this->text(slot.id) == text) return slot.id;
  }
}

std::string_view Vocabulary::text(TokenId id) const {
  if (id < 0 || id >= size()) return {};
  const uint64_t begin = offsets_[static_cast<size_t>(id)];
  return std::string_view(bytes_).substr(begin, offsets_[static_cast<size_t>(id) + 1] - begin);
}

int byte_of_token(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

std::vector<TokenId> byte_tokens(const Vocabulary& vocabulary) {
  static const char kDigits[] = "0123456789ABCDEF";
  std::vector<TokenId> ids;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string name = {'<', '0', 'x', kDigits[byte / 16], kDigits[byte % 16], '>'};
    const TokenId id = vocabulary.find(name);
    if (id == kNoToken) return {};
    ids.push_back(id);
  }
  return ids;
}

}  // namespace flywheel::model
