#include "model/bpe.h"

#include <algorithm>
#include <bit>

#include "model/unicode.h"

namespace flywheel::model {
namespace {

constexpr uint64_t kEmptyKey = UINT64_MAX;
constexpr std::string_view kWordMark = "\xE2\x96\x81";  // "▁"
// Above this many symbols a heap beats looking at every pair again for each merge.
constexpr size_t kFewSymbols = 96;

uint64_t key_of(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}
size_t hash_of(uint64_t key) {
  key ^= key >> 29;
  key *= 0x9E3779B97F4A7C15ull;
  return static_cast<size_t>(key >> 20);
}

// A mark after a character that is not one, inside one token?
bool has_inner_mark(std::string_view text) {
  for (size_t at = text.find(kWordMark); at != std::string_view::npos; at = text.find(kWordMark, at + 1)) {
    if (at > 0 && (at < 3 || text.substr(at - 3, 3) != kWordMark)) return true;
  }
  return false;
}

}  // namespace

// The symbols of one word while they are merged; arrays side by side, kept between calls.
struct Bpe::Symbols {
  std::vector<TokenId> ids;
  std::vector<uint32_t> sizes;  // bytes of the word that the symbol covers
  std::vector<Pair> pairs;      // pairs[i]: what symbols i and its right neighbour would become
  std::vector<uint32_t> previous, next;
  std::vector<uint64_t> heap;  // rank, then position: std::greater makes the least come first

  void clear() { ids.clear(), sizes.clear(); }
  void push(TokenId id, size_t size_bytes) {
    ids.push_back(id);
    sizes.push_back(static_cast<uint32_t>(size_bytes));
  }
};

Result<std::unique_ptr<Bpe>> Bpe::create(Vocabulary vocabulary, const std::vector<BpeMerge>& merges,
                                         BpeOptions options) {
  std::unique_ptr<Bpe> bpe(new Bpe(std::move(vocabulary), std::move(options)));
  const TokenId size = bpe->vocabulary_.size();
  bpe->slots_.assign(std::bit_ceil(merges.size() * 2 + 2), {kEmptyKey, {}});
  bpe->maybe_.assign(std::bit_ceil(merges.size() * 16 + 64) / 64, 0);
  for (const BpeMerge& merge : merges) {
    for (const TokenId id : {merge.left, merge.right, merge.result}) {
      if (id < 0 || id >= size) {
        return make_error(ErrorCode::kInvalid, "BPE merge of rank {} names token {}, but there are {} tokens",
                          merge.rank, id, size);
      }
    }
    bpe->insert(merge);
  }
  if (bpe->options_.byte_level) {
    for (int byte = 0; byte < 256; ++byte) {
      const char text = static_cast<char>(byte);
      bpe->bytes_[static_cast<size_t>(byte)] = bpe->vocabulary_.find({&text, 1});
    }
    bpe->byte_pairs_.resize(size_t{256} * 256);
    for (size_t i = 0; i < bpe->byte_pairs_.size(); ++i) {
      bpe->byte_pairs_[i] = bpe->find_pair(bpe->bytes_[i / 256], bpe->bytes_[i % 256]);
    }
    bpe->find_whole_characters(merges);
  } else if (bpe->options_.byte_fallback) {
    const std::vector<TokenId> bytes = byte_tokens(bpe->vocabulary_);
    bpe->has_byte_tokens_ = !bytes.empty();
    std::copy(bytes.begin(), bytes.end(), bpe->bytes_.begin());
  }
  bpe->boundaries_ = bpe->find_boundaries(merges);
  bpe->words_begin_with_mark_ = bpe->find_word_boundary_rule(merges);
  bpe->whole_ = std::make_unique<std::atomic<uint8_t>[]>(static_cast<size_t>(size) + 1);
  return bpe;
}

// A character's bytes b1 b2 (b3) become one token c by merges of ranks r1 (and r2). They surely do, and
// before any merge that uses c, if all merges that would take b1 from the left, or another of the bytes or
// what they become from the right, have higher ranks than the merge that they would prevent, and all merges
// that use c have higher ranks than those that make it. Then beginning with c gives the same result.
void Bpe::find_whole_characters(const std::vector<BpeMerge>& merges) {
  const auto size = static_cast<size_t>(vocabulary_.size());
  std::vector<uint32_t> as_left(size, kNever),
      as_right(size, kNever);  // the lowest rank that uses the token so
  for (const BpeMerge& merge : merges) {
    const uint32_t rank = find_pair(merge.left, merge.right).rank;
    as_left[static_cast<size_t>(merge.left)] = std::min(as_left[static_cast<size_t>(merge.left)], rank);
    as_right[static_cast<size_t>(merge.right)] = std::min(as_right[static_cast<size_t>(merge.right)], rank);
  }
  const auto left = [&](TokenId id) { return as_left[static_cast<size_t>(id)]; };
  const auto right = [&](TokenId id) { return as_right[static_cast<size_t>(id)]; };
  whole_characters_.assign(0x10000, kNoToken);
  std::string text;
  for (char32_t c = 0x80; c < 0x10000; ++c) {
    text.clear();
    append_utf8(text, c);
    const TokenId b1 = bytes_[static_cast<unsigned char>(text[0])],
                  b2 = bytes_[static_cast<unsigned char>(text[1])];
    const Pair first = find_pair(b1, b2);
    if (first.rank == kNever || first.rank >= right(b1)) continue;
    if (text.size() == 2) {
      const bool sure =
          first.rank < left(b2) && first.rank < std::min(left(first.result), right(first.result));
      if (sure && vocabulary_.text(first.result) == text) whole_characters_[c] = first.result;
      continue;
    }
    const TokenId b3 = bytes_[static_cast<unsigned char>(text[2])];
    const Pair second = find_pair(first.result, b3);
    if (second.rank == kNever || vocabulary_.text(second.result) != text) continue;
    const uint32_t last = std::max(first.rank, second.rank);
    if (first.rank < left(b2) && last < left(b3) && second.rank < right(first.result) &&
        last < std::min(left(second.result), right(second.result))) {
      whole_characters_[c] = second.result;
    }
  }
}

bool Bpe::find_word_boundary_rule(const std::vector<BpeMerge>& merges) const {
  if (options_.byte_level || !plain_) return false;
  return vocabulary_.find(kWordMark) != kNoToken &&
         std::none_of(merges.begin(), merges.end(),
                      [&](const BpeMerge& merge) { return has_inner_mark(vocabulary_.text(merge.result)); });
}

// None where a byte has no token, or a merge makes something else than its two sides in a row.
std::optional<BpeBoundaries> Bpe::find_boundaries(const std::vector<BpeMerge>& merges) const {
  if (!options_.byte_level) return std::nullopt;
  for (const TokenId id : bytes_) {
    if (id == kNoToken) return std::nullopt;
  }
  std::vector<std::string_view> made;
  for (const BpeMerge& merge : merges) {
    const std::string_view left = vocabulary_.text(merge.left), right = vocabulary_.text(merge.right),
                           text = vocabulary_.text(merge.result);
    if (text.size() != left.size() + right.size() || !text.starts_with(left) || !text.ends_with(right)) {
      return std::nullopt;
    }
    made.push_back(text);
  }
  return BpeBoundaries(made);
}

void Bpe::insert(const BpeMerge& merge) {
  const uint64_t key = key_of(merge.left, merge.right);
  size_t at = hash_of(key) & (slots_.size() - 1);
  while (slots_[at].key != kEmptyKey && slots_[at].key != key) at = (at + 1) & (slots_.size() - 1);
  maybe_[(hash_of(key) / 64) & (maybe_.size() - 1)] |= uint64_t{1} << hash_of(key) % 64;
  // Listed twice: the later one holds, as it does where merges are kept in a map.
  slots_[at] = {key, {merge.rank, merge.result}};
}

Bpe::Pair Bpe::find_pair(TokenId left, TokenId right) const {
  if ((left | right) < 0) return {};
  const uint64_t key = key_of(left, right);
  const size_t hash = hash_of(key);
  if ((maybe_[(hash / 64) & (maybe_.size() - 1)] >> hash % 64 & 1) == 0) return {};
  for (size_t at = hash & (slots_.size() - 1);; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].key == key) return slots_[at].pair;
    if (slots_[at].key == kEmptyKey) return {};
  }
}

void Bpe::encode(std::string_view piece, std::vector<TokenId>& ids, std::vector<uint32_t>* ends) const {
  if (!words_begin_with_mark_) return encode_word(piece, ids, ends, 0);
  for (size_t begin = 0; begin < piece.size();) {
    size_t end = begin;
    while (piece.substr(end, 3) == kWordMark) end += 3;
    end = std::min(piece.find(kWordMark, end), piece.size());
    encode_word(piece.substr(begin, end - begin), ids, ends, static_cast<uint32_t>(begin));
    begin = end;
  }
}

void Bpe::encode_word(std::string_view word, std::vector<TokenId>& ids, std::vector<uint32_t>* ends,
                      uint32_t base) const {
  if (word.empty()) return;
  const TokenId whole = find_whole(word);
  if (whole != kNoToken && (options_.whole_piece_first || is_known(whole))) {
    ids.push_back(whole);
    if (ends) ends->push_back(base + static_cast<uint32_t>(word.size()));
    return;
  }
  encode_parts(word, whole, ids, ends, base);
}

// A word that is not known to be one token. `whole` here and below: the token of the very text, if there is
// one.
void Bpe::encode_parts(std::string_view word, TokenId whole, std::vector<TokenId>& ids,
                       std::vector<uint32_t>* ends, uint32_t base) const {
  for (size_t at = 0, end = 0; at < word.size(); at = end) {
    end = boundaries_ ? boundaries_->next(word, at) : word.size();
    const std::string_view part = word.substr(at, end - at);
    const TokenId token = part.size() == word.size() ? whole : find_whole(part);
    if (token != kNoToken && is_known(token)) {
      ids.push_back(token);
      if (ends) ends->push_back(base + static_cast<uint32_t>(end));
    } else {
      merge(part, token, ids, ends, base + static_cast<uint32_t>(at));
    }
  }
}

void Bpe::merge(std::string_view part, TokenId whole, std::vector<TokenId>& ids, std::vector<uint32_t>* ends,
                uint32_t base) const {
  thread_local Symbols symbols;
  symbols.clear();
  if (options_.byte_level) {
    begin_with_bytes(part, symbols);
  } else {
    begin_with_characters(part, symbols);
  }
  if (symbols.ids.size() <= kFewSymbols) {
    merge_few(symbols);
  } else {
    merge_many(symbols);
  }
  if (whole != kNoToken) {
    const bool same = symbols.ids.size() == 1 && symbols.ids[0] == whole;
    whole_[static_cast<size_t>(whole)].store(same ? 1 : 2, std::memory_order_relaxed);
  }
  ids.insert(ids.end(), symbols.ids.begin(), symbols.ids.end());
  if (ends) {
    for (const uint32_t size : symbols.sizes) ends->push_back(base += size);
  }
}

void Bpe::begin_with_bytes(std::string_view word, Symbols& symbols) const {
  bool last_unknown = false;
  bool complete = true;  // one symbol for each byte
  for (size_t at = 0; at < word.size(); ++at) {
    const auto byte = static_cast<unsigned char>(word[at]);
    if (byte >= 0xC2 && byte < 0xF0) {
      const CodePoint c = decode_utf8(word, at);
      const TokenId whole = c.valid ? whole_characters_[c.value] : kNoToken;
      if (whole != kNoToken) {
        symbols.push(whole, c.size_bytes);
        at += c.size_bytes - 1;
        last_unknown = complete = false;
        continue;
      }
    }
    const TokenId id = bytes_[byte];
    if (id != kNoToken) {
      symbols.push(id, 1);
    } else if (options_.unknown != kNoToken && !(options_.fuse_unknown && last_unknown)) {
      symbols.push(options_.unknown, 1);
    } else if (!symbols.sizes.empty()) {
      ++symbols.sizes.back();
    }
    last_unknown = id == kNoToken;
    complete &= !last_unknown;
  }
  const size_t n = symbols.ids.size();
  symbols.pairs.resize(n);
  for (size_t i = 0; i + 1 < n; ++i) {
    symbols.pairs[i] = complete ? byte_pairs_[static_cast<unsigned char>(word[i]) * size_t{256} +
                                              static_cast<unsigned char>(word[i + 1])]
                                : find_pair(symbols.ids[i], symbols.ids[i + 1]);
  }
}

void Bpe::begin_with_characters(std::string_view word, Symbols& symbols) const {
  bool last_unknown = false;
  std::string decorated;
  for (size_t at = 0; at < word.size();) {
    const size_t size = decode_utf8(word, at).size_bytes;
    std::string_view text = word.substr(at, size);
    if (!plain_) {
      decorated = at > 0 ? options_.continuing_prefix : "";
      decorated += text;
      if (at + size == word.size()) decorated += options_.end_suffix;
      text = decorated;
    }
    const TokenId id = vocabulary_.find(text);
    const bool unknown = id == kNoToken && !has_byte_tokens_;
    if (id != kNoToken) {
      symbols.push(id, size);
    } else if (has_byte_tokens_) {
      for (const char byte : word.substr(at, size)) symbols.push(bytes_[static_cast<unsigned char>(byte)], 1);
    } else if (options_.unknown != kNoToken && !(options_.fuse_unknown && last_unknown)) {
      symbols.push(options_.unknown, size);
    } else if (!symbols.sizes.empty()) {
      symbols.sizes.back() += static_cast<uint32_t>(size);
    }
    last_unknown = unknown;
    at += size;
  }
  const size_t n = symbols.ids.size();
  symbols.pairs.resize(n);
  for (size_t i = 0; i + 1 < n; ++i) symbols.pairs[i] = find_pair(symbols.ids[i], symbols.ids[i + 1]);
}

void Bpe::merge_few(Symbols& symbols) const {
  size_t n = symbols.ids.size();
  TokenId* ids = symbols.ids.data();
  uint32_t* sizes = symbols.sizes.data();
  Pair* pairs = symbols.pairs.data();
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == kNever) break;
    ids[best] = pairs[best].result;
    sizes[best] += sizes[best + 1];
    std::copy(ids + best + 2, ids + n, ids + best + 1);
    std::copy(sizes + best + 2, sizes + n, sizes + best + 1);
    std::copy(pairs + best + 2, pairs + n, pairs + best + 1);
    --n;
    if (best > 0) pairs[best - 1] = find_pair(ids[best - 1], ids[best]);
    if (best + 1 < n) pairs[best] = find_pair(ids[best], ids[best + 1]);
  }
  symbols.ids.resize(n);
  symbols.sizes.resize(n);
}

void Bpe::merge_many(Symbols& symbols) const {
  const auto n = static_cast<uint32_t>(symbols.ids.size());
  std::vector<TokenId>& ids = symbols.ids;
  std::vector<Pair>& pairs = symbols.pairs;
  pairs[n - 1] = {};
  symbols.previous.resize(n);
  symbols.next.resize(n);
  symbols.heap.clear();
  for (uint32_t i = 0; i < n; ++i) {
    symbols.previous[i] = i - 1;  // wraps to no symbol at 0
    symbols.next[i] = i + 1;
    if (pairs[i].rank != kNever) symbols.heap.push_back(uint64_t{pairs[i].rank} << 32 | i);
  }
  std::make_heap(symbols.heap.begin(), symbols.heap.end(), std::greater<>());
  const auto update = [&](uint32_t i) {
    const uint32_t right = symbols.next[i];
    pairs[i] = right < n ? find_pair(ids[i], ids[right]) : Pair{};
    if (pairs[i].rank == kNever) return;
    symbols.heap.push_back(uint64_t{pairs[i].rank} << 32 | i);
    std::push_heap(symbols.heap.begin(), symbols.heap.end(), std::greater<>());
  };
  while (!symbols.heap.empty()) {
    std::pop_heap(symbols.heap.begin(), symbols.heap.end(), std::greater<>());
    const uint64_t entry = symbols.heap.back();
    symbols.heap.pop_back();
    const auto left = static_cast<uint32_t>(entry);
    // Entries are not removed when a neighbour changes: one that no longer says what the pair is, is old.
    if (pairs[left].rank != entry >> 32) continue;
    const uint32_t right = symbols.next[left];
    ids[left] = pairs[left].result;
    symbols.sizes[left] += symbols.sizes[right];
    pairs[right] = {};
    symbols.sizes[right] = 0;
    symbols.next[left] = symbols.next[right];
    if (symbols.next[left] < n) symbols.previous[symbols.next[left]] = left;
    update(left);
    if (symbols.previous[left] < n) update(symbols.previous[left]);
  }
  uint32_t kept = 0;
  for (uint32_t i = 0; i < n; i = symbols.next[i]) {
    ids[kept] = ids[i];
    symbols.sizes[kept++] = symbols.sizes[i];
  }
  ids.resize(kept);
  symbols.sizes.resize(kept);
}

std::vector<BpeMerge> merges_of_vocabulary(const Vocabulary& vocabulary,
                                           const std::vector<uint32_t>& rank_of_token) {
  std::vector<BpeMerge> merges;
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const uint32_t rank = rank_of_token[static_cast<size_t>(id)];
    const std::string_view text = vocabulary.text(id);
    if (rank == kNoRank || text.size() < 2 || vocabulary.find(text) != id) continue;
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const TokenId left = vocabulary.find(text.substr(0, cut));
      const TokenId right = left == kNoToken ? kNoToken : vocabulary.find(text.substr(cut));
      if (right != kNoToken) merges.push_back({left, right, id, rank});
    }
  }
  return merges;
}

}  // namespace flywheel::model
