#include "model/bpe_trainer.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <queue>
#include <unordered_map>

#include "base/hash.h"
#include "base/json.h"
#include "model/byte_level.h"
#include "model/pretokenizer_pattern.h"
#include "model/tokenizer_json_parts.h"
#include "model/unicode.h"

namespace flywheel::model {
namespace {

struct PieceHash {
  using is_transparent = void;
  size_t operator()(std::string_view piece) const { return xxh64(piece); }
};
using CountMap = std::unordered_map<std::string, int64_t, PieceHash, std::equal_to<>>;

constexpr size_t kShards = 64;
constexpr int64_t kTextsAtOnce = 16;

std::string_view regex_of(const std::string& pattern) {
  if (pattern == "gpt2") return kGpt2Pattern;
  if (pattern == "llama3") return kLlama3Pattern;
  if (pattern == "qwen2") return kQwen2Pattern;
  if (pattern == "o200k") return kO200kPattern;
  return {};
}

// The merging itself: words of symbols with their counts, and for each pair of neighbours how often it occurs
// and in which words.
class PairMerger {
 public:
  struct Pair {
    uint32_t left, right;
    auto operator<=>(const Pair&) const = default;
  };
  struct Best {
    Pair pair;
    int64_t count;
  };

  void add_word(std::vector<uint32_t> symbols, int64_t count) {
    const auto word = static_cast<uint32_t>(words_.size());
    for (size_t i = 0; i + 1 < symbols.size(); ++i) change({symbols[i], symbols[i + 1]}, count, word);
    words_.push_back({std::move(symbols), count});
  }
  void begin() {
    for (const auto& [key, entry] : pairs_) heap_.push({entry.count, pair_of(key)});
    grown_.clear();
  }
  // The most frequent pair; of equals the one of the smallest ids. count 0: none is left.
  Best pop() {
    while (!heap_.empty()) {
      const Candidate top = heap_.top();
      heap_.pop();
      const int64_t now = pairs_.at(key_of(top.pair)).count;
      if (now == top.count) return {top.pair, now};
      // Counts that grew were pushed again; this one shrank since.
      if (now > 0 && now < top.count) heap_.push({now, top.pair});
    }
    return {{0, 0}, 0};
  }
  void merge(Pair pair, uint32_t result) {
    const std::vector<uint32_t> where = std::move(pairs_.at(key_of(pair)).words);
    for (const uint32_t word : where) merge_in(word, pair, result);
    pairs_[key_of(pair)] = {};
    for (const uint64_t key : grown_) {
      Entry& entry = pairs_.at(key);
      entry.grown = false;
      if (entry.count > 0) heap_.push({entry.count, pair_of(key)});
    }
    grown_.clear();
  }

 private:
  struct Word {
    std::vector<uint32_t> symbols;
    int64_t count;
  };
  struct Entry {
    int64_t count = 0;
    bool grown = false;
    std::vector<uint32_t> words;  // every word that has the pair, and some that had it
  };
  struct Candidate {
    int64_t count;
    Pair pair;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };
  static uint64_t key_of(Pair pair) { return uint64_t{pair.left} << 32 | pair.right; }
  static Pair pair_of(uint64_t key) { return {static_cast<uint32_t>(key >> 32), static_cast<uint32_t>(key)}; }

  void change(Pair pair, int64_t by, uint32_t word) {
    const uint64_t key = key_of(pair);
    Entry& entry = pairs_[key];
    entry.count += by;
    if (by < 0) return;
    if (entry.words.empty() || entry.words.back() != word) entry.words.push_back(word);
    if (!entry.grown) grown_.push_back(key);
    entry.grown = true;
  }

  void merge_in(uint32_t index, Pair pair, uint32_t result) {
    Word& word = words_[index];
    std::vector<uint32_t>& symbols = word.symbols;
    size_t out = 0;
    for (size_t i = 0; i < symbols.size();) {
      if (i + 1 == symbols.size() || symbols[i] != pair.left || symbols[i + 1] != pair.right) {
        symbols[out++] = symbols[i++];
        continue;
      }
      if (out > 0) {
        change({symbols[out - 1], pair.left}, -word.count, index);
        change({symbols[out - 1], result}, word.count, index);
      }
      if (i + 2 < symbols.size()) {
        change({pair.right, symbols[i + 2]}, -word.count, index);
        change({result, symbols[i + 2]}, word.count, index);
      }
      symbols[out++] = result;
      i += 2;
    }
    symbols.resize(out);
  }

  std::vector<Word> words_;
  std::unordered_map<uint64_t, Entry> pairs_;
  std::priority_queue<Candidate> heap_;
  std::vector<uint64_t> grown_;
};

}  // namespace

struct BpeTrainer::Counts {
  struct Shard {
    std::mutex mutex;
    CountMap counts;
  };
  std::array<Shard, kShards> shards;
};

BpeTrainer::BpeTrainer(BpeTrainerConfig config)
    : config_(std::move(config)), counts_(std::make_unique<Counts>()) {}
BpeTrainer::~BpeTrainer() = default;
BpeTrainer::BpeTrainer(BpeTrainer&&) noexcept = default;

void BpeTrainer::add(std::span<const std::string> texts, ThreadPool& pool) {
  const PatternFn next = find_pattern(regex_of(config_.pattern));
  if (!next) return;  // train() says so
  pool.parallel_for(static_cast<int64_t>(texts.size()), kTextsAtOnce, [&](int64_t begin, int64_t end) {
    CountMap local;
    for (int64_t i = begin; i < end; ++i) {
      const std::string_view text = texts[static_cast<size_t>(i)];
      for (size_t at = 0; at < text.size();) {
        const size_t stop = next(text, at);
        const std::string_view piece = text.substr(at, stop - at);
        const auto found = local.find(piece);
        if (found != local.end()) {
          ++found->second;
        } else {
          local.emplace(piece, 1);
        }
        at = stop;
      }
    }
    for (const auto& [piece, count] : local) {
      Counts::Shard& shard = counts_->shards[xxh64(piece, 1) % kShards];
      const std::lock_guard lock(shard.mutex);
      shard.counts[piece] += count;
    }
  });
}

size_t BpeTrainer::distinct_pieces() const {
  size_t total = 0;
  for (const Counts::Shard& shard : counts_->shards) total += shard.counts.size();
  return total;
}

Result<void> check(const BpeTrainerConfig& config) {
  if (regex_of(config.pattern).empty()) {
    return make_error(ErrorCode::kInvalid, "pattern \"{}\" is not one of gpt2, llama3, qwen2, o200k",
                      config.pattern);
  }
  const auto specials = static_cast<int64_t>(config.special_tokens.size());
  constexpr int64_t kMost = int64_t{1} << 24;
  if (config.vocab_size > kMost) {
    return make_error(ErrorCode::kInvalid, "vocab_size {}: at most {} are possible", config.vocab_size,
                      kMost);
  }
  if (config.vocab_size < specials + 256) {
    return make_error(ErrorCode::kInvalid, "vocab_size {}: {} special tokens and 256 bytes need at least {}",
                      config.vocab_size, specials, specials + 256);
  }
  return {};
}

Result<std::string> BpeTrainer::train() const {
  RETURN_IF_ERROR(check(config_));
  const std::string_view regex = regex_of(config_.pattern);
  if (distinct_pieces() == 0) return make_error(ErrorCode::kInvalid, "no text to train a tokenizer on");

  // Ids: special tokens, then the bytes in the order of the characters that stand for them.
  std::vector<std::string> tokens = config_.special_tokens;
  std::vector<std::string> alphabet;
  for (int byte = 0; byte < 256; ++byte) alphabet.push_back(std::string(1, static_cast<char>(byte)));
  std::sort(alphabet.begin(), alphabet.end(), [](const std::string& a, const std::string& b) {
    const std::string x = byte_level_of_bytes(a), y = byte_level_of_bytes(b);
    return decode_utf8(x, 0).value < decode_utf8(y, 0).value;
  });
  std::array<uint32_t, 256> id_of_byte{};
  std::unordered_map<std::string, uint32_t> ids;
  for (const std::string& byte : alphabet) {
    id_of_byte[static_cast<unsigned char>(byte[0])] = static_cast<uint32_t>(tokens.size());
    ids[byte] = static_cast<uint32_t>(tokens.size());
    tokens.push_back(byte);
  }

  PairMerger merger;
  for (const Counts::Shard& shard : counts_->shards) {
    for (const auto& [piece, count] : shard.counts) {
      std::vector<uint32_t> symbols;
      for (const char c : piece) symbols.push_back(id_of_byte[static_cast<unsigned char>(c)]);
      merger.add_word(std::move(symbols), count);
    }
  }
  merger.begin();
  OrderedJson merges = OrderedJson::array();
  const auto first = static_cast<int64_t>(tokens.size());
  const int64_t wanted = config_.vocab_size - first;
  const auto made = [&] { return static_cast<int64_t>(tokens.size()) - first; };
  while (static_cast<int64_t>(tokens.size()) < config_.vocab_size) {
    const PairMerger::Best best = merger.pop();
    if (best.count < std::max<int64_t>(1, config_.min_frequency)) break;
    const std::string &left = tokens[best.pair.left], &right = tokens[best.pair.right];
    merges.push_back({byte_level_of_bytes(left), byte_level_of_bytes(right)});
    // Two ways of cutting may give the same bytes: that is one token.
    const auto [at, is_new] = ids.emplace(left + right, static_cast<uint32_t>(tokens.size()));
    if (is_new) tokens.push_back(at->first);
    merger.merge(best.pair, at->second);
    if (config_.progress && tokens.size() % 64 == 0) config_.progress(made(), wanted);
  }
  if (config_.progress) config_.progress(made(), made());

  OrderedJson added = OrderedJson::array(), vocab = OrderedJson::object();
  for (size_t id = 0; id < tokens.size(); ++id) {
    const bool special = id < config_.special_tokens.size();
    vocab[special ? tokens[id] : byte_level_of_bytes(tokens[id])] = id;
    if (!special) continue;
    added.push_back(added_token_json(id, tokens[id], true));
  }
  const OrderedJson byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const OrderedJson split = {{"type", "Split"},
                             {"pattern", {{"Regex", std::string(regex)}}},
                             {"behavior", "Isolated"},
                             {"invert", false}};
  OrderedJson json;
  json["version"] = "1.0";
  json["truncation"] = nullptr;
  json["padding"] = nullptr;
  json["added_tokens"] = added;
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, byte_level}}};
  json["post_processor"] = byte_level;
  json["decoder"] = byte_level;
  json["model"] = to_json({.vocab = std::move(vocab), .merges = std::move(merges)});
  return json.dump(1, ' ') + "\n";
}

}  // namespace flywheel::model
