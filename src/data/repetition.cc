// Gopher's repetition rules: how much of a text is lines, paragraphs or n-grams of words that it has already
// said.
#include <algorithm>
#include <bit>

#include "base/hash.h"
#include "data/quality_internal.h"

namespace flywheel::data {
namespace {

// Counts of 64-bit keys by open addressing, cleared by a new generation.
class Counter {
 public:
  void begin(size_t keys) {
    const size_t wanted = std::bit_ceil(std::max<size_t>(keys * 2, 64));
    if (slots_.size() < wanted) {
      slots_.assign(wanted, {});
      generation_ = 0;
    }
    mask_ = wanted - 1;
    ++generation_;
  }
  // The count after adding one.
  uint32_t add(uint64_t key) {
    for (size_t i = key & mask_;; i = (i + 1) & mask_) {
      Slot& slot = slots_[i];
      if (slot.generation != generation_) {
        slot = {key, generation_, 1};
        return 1;
      }
      if (slot.key == key) return ++slot.count;
    }
  }

 private:
  struct Slot {
    uint64_t key = 0;
    uint32_t generation = 0, count = 0;
  };
  std::vector<Slot> slots_;
  size_t mask_ = 0;
  uint32_t generation_ = 0;
};

struct Duplicates {
  double items = 0, chars = 0;  // shares
};

// Share of the pieces that were there before, and of their characters.
Duplicates duplicates(const std::vector<std::string_view>& pieces, Counter& counter) {
  if (pieces.empty()) return {};
  counter.begin(pieces.size());
  size_t repeated = 0, repeated_chars = 0, chars = 0;
  for (const std::string_view piece : pieces) {
    chars += piece.size();
    if (counter.add(xxh64(piece)) > 1) {
      ++repeated;
      repeated_chars += piece.size();
    }
  }
  return {static_cast<double>(repeated) / static_cast<double>(pieces.size()),
          chars == 0 ? 0 : static_cast<double>(repeated_chars) / static_cast<double>(chars)};
}

uint64_t mix(uint64_t h, uint64_t word) {
  h = (h ^ word) * 0x9E3779B97F4A7C15ull;
  return h ^ (h >> 29);
}

class Ngrams {
 public:
  Ngrams(const std::vector<Word>& words, Counter& counter) : counter_(counter) {
    hashes_.reserve(words.size());
    offsets_.reserve(words.size() + 1);
    size_t at = 0;
    for (const Word& word : words) {
      hashes_.push_back(xxh64(word.text));
      offsets_.push_back(at);
      at += word.text.size();
    }
    offsets_.push_back(at);
  }
  // Share of the characters in the n-gram that covers most of them; an n-gram that occurs once covers
  // nothing.
  double top(size_t n) {
    if (hashes_.size() < n) return 0;
    counter_.begin(hashes_.size());
    size_t best = 0;
    for (size_t i = 0; i + n <= hashes_.size(); ++i) {
      const uint32_t count = counter_.add(key(i, n));
      if (count > 1) best = std::max(best, count * chars(i, n));
    }
    return static_cast<double>(best) / static_cast<double>(offsets_.back());
  }
  // Share of the characters in n-grams that were there before, each character counted once.
  double duplicate(size_t n) {
    if (hashes_.size() < n) return 0;
    counter_.begin(hashes_.size());
    size_t covered = 0, covered_to = 0;  // words before covered_to are counted
    for (size_t i = 0; i + n <= hashes_.size(); ++i) {
      if (counter_.add(key(i, n)) == 1) continue;
      const size_t from = std::max(i, covered_to);
      covered += offsets_[i + n] - offsets_[from];
      covered_to = i + n;
    }
    return static_cast<double>(covered) / static_cast<double>(offsets_.back());
  }

 private:
  uint64_t key(size_t i, size_t n) const {
    uint64_t h = n;
    for (size_t k = 0; k < n; ++k) h = mix(h, hashes_[i + k]);
    return h;
  }
  size_t chars(size_t i, size_t n) const { return offsets_[i + n] - offsets_[i]; }
  std::vector<uint64_t> hashes_;
  std::vector<size_t> offsets_;
  Counter& counter_;
};

}  // namespace

QualityVerdict judge_repetition(const Prose& prose, const GopherRepetitionConfig& config) {
  thread_local Counter counter;
  const auto over = [](const char* rule, double value, double threshold) -> QualityVerdict {
    return {!(value > threshold), std::string("gopher_repetition.") + rule, value, threshold};
  };
  std::vector<std::string_view> lines, paragraphs;
  const char* begin = nullptr;
  for (const std::string_view line : prose.lines) {
    const bool empty = line.find_first_not_of(" \t") == std::string_view::npos;
    if (!empty) lines.push_back(line);
    // Lines of one paragraph stand one behind the other in the text, unless code was left out between them.
    const bool follows = begin != nullptr && !paragraphs.empty() &&
                         paragraphs.back().data() + paragraphs.back().size() + 1 == line.data();
    if (empty) {
      begin = nullptr;
    } else if (follows) {
      paragraphs.back() = {begin, static_cast<size_t>(line.data() + line.size() - begin)};
    } else {
      begin = line.data();
      paragraphs.push_back(line);
    }
  }
  const Duplicates of_lines = duplicates(lines, counter), of_paragraphs = duplicates(paragraphs, counter);
  Ngrams ngrams(prose.words, counter);
  QualityVerdict verdict;
  const auto refused = [&](const char* rule, double value, double threshold) {
    verdict = over(rule, value, threshold);
    return !verdict.keep;
  };
  if (refused("max_duplicate_lines", of_lines.items, config.max_duplicate_lines) ||
      refused("max_duplicate_paragraphs", of_paragraphs.items, config.max_duplicate_paragraphs) ||
      refused("max_duplicate_line_chars", of_lines.chars, config.max_duplicate_line_chars) ||
      refused("max_duplicate_paragraph_chars", of_paragraphs.chars, config.max_duplicate_paragraph_chars) ||
      refused("max_top_2gram_chars", ngrams.top(2), config.max_top_2gram_chars) ||
      refused("max_top_3gram_chars", ngrams.top(3), config.max_top_3gram_chars) ||
      refused("max_top_4gram_chars", ngrams.top(4), config.max_top_4gram_chars) ||
      refused("max_duplicate_5gram_chars", ngrams.duplicate(5), config.max_duplicate_5gram_chars) ||
      refused("max_duplicate_6gram_chars", ngrams.duplicate(6), config.max_duplicate_6gram_chars) ||
      refused("max_duplicate_7gram_chars", ngrams.duplicate(7), config.max_duplicate_7gram_chars) ||
      refused("max_duplicate_8gram_chars", ngrams.duplicate(8), config.max_duplicate_8gram_chars) ||
      refused("max_duplicate_9gram_chars", ngrams.duplicate(9), config.max_duplicate_9gram_chars) ||
      refused("max_duplicate_10gram_chars", ngrams.duplicate(10), config.max_duplicate_10gram_chars)) {
    return verdict;
  }
  return {};
}

}  // namespace flywheel::data
