#include "data/dedup.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "base/hash.h"
#include "base/philox.h"
#include "base/result.h"
#include "data/words.h"

namespace flywheel::data {
namespace {

constexpr uint64_t kHashStream = 0x6d696e68617368;  // "minhash"

// Hash i of x is mix(a_i * x + b_i): a_i odd.
struct HashFamily {
  uint64_t seed = 0;
  std::vector<uint32_t> a, b;
  HashFamily(uint64_t seed_in, size_t n) : seed(seed_in), a(n), b(n) {
    Philox rng(seed, kHashStream);
    for (size_t i = 0; i < n; ++i) a[i] = rng.next_u32() | 1, b[i] = rng.next_u32();
  }
};

// The loop of the whole stage: 32-bit lanes without branches, for the compiler to turn into vector code.
void update_minima(uint32_t* __restrict minima, const uint32_t* __restrict a, const uint32_t* __restrict b,
                   size_t n, uint32_t x) {
  for (size_t i = 0; i < n; ++i) {
    uint32_t h = a[i] * x + b[i];
    h ^= h >> 15;
    h *= 0x2C1B3C6Du;
    h ^= h >> 12;
    minima[i] = h < minima[i] ? h : minima[i];
  }
}

class UnionFind {
 public:
  explicit UnionFind(size_t n) : parent_(n) { std::iota(parent_.begin(), parent_.end(), int64_t{0}); }
  int64_t find(int64_t i) {
    while (parent_[static_cast<size_t>(i)] != i) {
      auto& up = parent_[static_cast<size_t>(i)];
      up = parent_[static_cast<size_t>(up)];
      i = up;
    }
    return i;
  }
  // The smaller of the two roots becomes the root of both: the first document leads.
  void join(int64_t i, int64_t j) {
    i = find(i), j = find(j);
    parent_[static_cast<size_t>(std::max(i, j))] = std::min(i, j);
  }

 private:
  std::vector<int64_t> parent_;
};

}  // namespace

void check(const DedupConfig& config) {
  if (config.bands < 1 || config.rows < 1 || config.ngram_words < 1 ||
      int64_t{config.bands} * config.rows > 1024) {
    throw UserError(
        "dedup", fmt::format("bands {}, rows {}, ngram_words {}: each must be at least 1, and bands x rows "
                             "at most 1024",
                             config.bands, config.rows, config.ngram_words));
  }
}

Sketch sketch_text(std::string_view text, const DedupConfig& config) {
  check(config);
  Sketch sketch;
  sketch.text_hash[0] = xxh64(text, config.seed);
  sketch.text_hash[1] = xxh64(text, config.seed + 0x9E3779B97F4A7C15ull);
  if (!config.near) return sketch;
  const auto n = static_cast<size_t>(config.bands * config.rows);
  const auto gram = static_cast<size_t>(config.ngram_words);
  thread_local HashFamily family(config.seed, n);
  if (family.seed != config.seed || family.a.size() != n) family = HashFamily(config.seed, n);
  thread_local std::vector<uint64_t> words;
  hash_letter_words(text, words);
  if (words.empty()) return sketch;
  std::vector<uint32_t> minima(n, std::numeric_limits<uint32_t>::max());
  const size_t length = std::min(gram, words.size());  // a text shorter than one n-gram is one
  for (size_t i = 0; i + length <= words.size(); ++i) {
    const std::string_view bytes(reinterpret_cast<const char*>(&words[i]), length * sizeof words[0]);
    const uint64_t hash = xxh64(bytes, config.seed);
    update_minima(minima.data(), family.a.data(), family.b.data(), n,
                  static_cast<uint32_t>(hash ^ (hash >> 32)));
  }
  sketch.low.resize(n);
  for (size_t i = 0; i < n; ++i) sketch.low[i] = static_cast<uint8_t>(minima[i]);
  const size_t band_bytes = static_cast<size_t>(config.rows) * sizeof minima[0];
  for (size_t band = 0; band < static_cast<size_t>(config.bands); ++band) {
    const char* rows = reinterpret_cast<const char*>(minima.data()) + band * band_bytes;
    sketch.bands.push_back(xxh64({rows, band_bytes}, band));
  }
  return sketch;
}

double estimate_similarity(const Sketch& a, const Sketch& b) {
  if (a.text_hash[0] == b.text_hash[0] && a.text_hash[1] == b.text_hash[1]) return 1;
  if (a.low.empty() || a.low.size() != b.low.size()) return 0;
  size_t same = 0;
  for (size_t i = 0; i < a.low.size(); ++i) same += a.low[i] == b.low[i] ? 1 : 0;
  const double share = static_cast<double>(same) / static_cast<double>(a.low.size());
  constexpr double kByChance = 1.0 / 256;
  return std::max(0.0, (share - kByChance) / (1 - kByChance));
}

DuplicateReport find_duplicates(const std::vector<Sketch>& sketches, const DedupConfig& config,
                                ThreadPool& pool) {
  const size_t n = sketches.size();
  DuplicateReport report;
  report.duplicate_of.assign(n, -1);
  report.exact.assign(n, 0);
  UnionFind groups(n);
  if (config.exact) {
    struct Both {
      size_t operator()(const std::pair<uint64_t, uint64_t>& key) const { return key.first ^ key.second; }
    };
    std::unordered_map<std::pair<uint64_t, uint64_t>, int64_t, Both> first;
    first.reserve(n);
    for (size_t i = 0; i < n; ++i) {
      const auto [it, added] =
          first.try_emplace({sketches[i].text_hash[0], sketches[i].text_hash[1]}, static_cast<int64_t>(i));
      if (added) continue;
      groups.join(it->second, static_cast<int64_t>(i));
      report.exact[i] = 1;
    }
  }
  if (config.near) {
    const auto bands = static_cast<size_t>(config.bands);
    std::vector<std::vector<std::pair<int64_t, int64_t>>> meetings(bands);
    pool.parallel_for(config.bands, 1, [&](int64_t begin, int64_t end) {
      std::vector<std::pair<uint64_t, int64_t>> column;
      for (int64_t band = begin; band < end; ++band) {
        column.clear();
        for (size_t i = 0; i < n; ++i) {
          if (!sketches[i].bands.empty()) {
            column.emplace_back(sketches[i].bands[static_cast<size_t>(band)], static_cast<int64_t>(i));
          }
        }
        std::sort(column.begin(), column.end());
        for (size_t i = 1; i < column.size(); ++i) {
          if (column[i].first == column[i - 1].first) {
            meetings[static_cast<size_t>(band)].emplace_back(column[i - 1].second, column[i].second);
          }
        }
      }
    });
    for (const auto& band : meetings) {
      for (const auto& [a, b] : band) groups.join(a, b);
    }
  }
  std::unordered_map<int64_t, size_t> cluster_of;
  for (size_t i = 0; i < n; ++i) {
    const int64_t root = groups.find(static_cast<int64_t>(i));
    if (root == static_cast<int64_t>(i)) continue;
    report.duplicate_of[i] = root;
    const auto [it, added] = cluster_of.try_emplace(root, report.clusters.size());
    if (added) report.clusters.push_back({root, {}});
    report.clusters[it->second].members.push_back(static_cast<int64_t>(i));
  }
  std::sort(report.clusters.begin(), report.clusters.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  return report;
}

}  // namespace flywheel::data
