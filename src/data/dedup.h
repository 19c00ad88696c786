// Exact and near-duplicate documents.
//
// Exact: the same text (128-bit hash). Near: MinHash-LSH (Broder 1997; Indyk and Motwani 1998) over 5-grams
// of words, 14 bands of 8 hashes, the setting of FineWeb: a pair with Jaccard similarity 0.75 meets with
// probability 0.77, one with 0.9 always, one with 0.5 in 5% of cases. Documents that meet in a band are one
// cluster, and so are theirs. The first in document order stays; nothing depends on the number of threads.
//
// Memory: 250 bytes a document. Threads: sketch() any; find_duplicates uses the pool. Errors: none.
//
//   std::vector<Sketch> sketches = ...;                         // sketch_text(text, config) for each, in
//   order DuplicateReport report = find_duplicates(sketches, config, pool); report.duplicate_of[i] // -1:
//   document i stays
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"

namespace flywheel::data {

struct DedupConfig {
  bool exact = true;
  bool near = true;
  int bands = 14;
  int rows = 8;  // hashes in a band
  int ngram_words = 5;
  uint64_t seed = 1;
  template <typename V>
  void fields(V& v) {
    v("exact", exact), v("near", near), v("bands", bands), v("rows", rows), v("ngram_words", ngram_words);
    v("seed", seed);
  }
};

struct Sketch {
  uint64_t text_hash[2] = {0, 0};
  std::vector<uint64_t> bands;  // one hash for each; empty for a text without words
  std::vector<uint8_t> low;     // 8 bits of each MinHash: estimates the similarity of two documents
};

// UserError for a config that cannot be (bands or rows below 1, more than 1,024 hashes).
void check(const DedupConfig& config);

Sketch sketch_text(std::string_view text, const DedupConfig& config);

// Jaccard similarity of the n-grams of two texts, estimated from their sketches (b-bit minwise hashing, Li
// and König 2010).
double estimate_similarity(const Sketch& a, const Sketch& b);

struct DuplicateReport {
  struct Cluster {
    int64_t first = 0;             // the document that stays
    std::vector<int64_t> members;  // the others, ascending
  };
  std::vector<int64_t> duplicate_of;  // per document: the one that stays instead of it, or -1
  std::vector<uint8_t> exact;         // per document: 1 when it is the same text
  std::vector<Cluster> clusters;      // by first
};

DuplicateReport find_duplicates(const std::vector<Sketch>& sketches, const DedupConfig& config,
                                ThreadPool& pool);

}  // namespace flywheel::data
