// Raw files into a dataset: extract -> clean -> dedup -> tokenizer -> shards. `flywheel data prepare` is
// this.
//
// A stage whose inputs and config have not changed since it last finished, and whose files are as it wrote
// them (size and checksum), is not done again; a stage that was killed is done whole, and what it left half
// written is removed first. The result is the same for any number
// of threads.
//
// Remote inputs are fetched once to stages/fetched and removed after extraction: the disk must hold them that
// long.
//
// In the output folder: documents.jsonl (clean documents), dropped.jsonl (each with its rule and numbers),
// quarantined.jsonl (what could not be read, with its place), clusters.jsonl (near-duplicates), inputs.jsonl
// (files by SHA-256), tokenizer/tokenizer.json, shards/train and shards/validation (data/shards.h),
// report.json, report.md, config.yaml (resolved).
//
// Threads and processes: one call per output folder, another one gets kUnavailable; the pool does the work.
// Errors: UserError for inputs and config; kIo and kCorrupt as they come. Malformed input is no error: it is
// quarantined and counted.
//
//   DataConfig config = load_config<DataConfig>("data.yaml");
//   ASSIGN_OR_RETURN(PrepareReport report, prepare({.inputs = {"docs"}, .output = "out", .config = config}));
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "data/dedup.h"
#include "data/extract.h"
#include "data/input.h"
#include "data/quality.h"
#include "data/report.h"
#include "data/unicode.h"
#include "store/store.h"

namespace flywheel::data {

struct TokenizeConfig {
  std::string path;  // a tokenizer that is there; "": train one on the documents
  int64_t vocab_size = 8192;
  std::string pattern = "llama3";              // how text is cut into pieces: gpt2, llama3, qwen2, o200k
  std::string document_end = "<|endoftext|>";  // stands behind each document
  int64_t train_bytes = 0;                     // train on this much text, documents chosen by hash; 0: all
  template <typename V>
  void fields(V& v) {
    v("path", path), v("vocab_size", vocab_size), v("pattern", pattern), v("document_end", document_end);
    v("train_bytes", train_bytes);
  }
};

struct ShardConfig {
  int64_t shard_tokens = int64_t{64} << 20;
  double validation_fraction = 0.01;  // of the documents, by hash of their text
  uint64_t seed = 1;                  // of that choice
  template <typename V>
  void fields(V& v) {
    v("shard_tokens", shard_tokens), v("validation_fraction", validation_fraction), v("seed", seed);
  }
};

struct DataConfig {
  std::string name = "dataset";  // of the artifact in the store
  bool parquet = false;          // also write documents.parquet
  InputConfig input;
  ExtractConfig extract;
  UnicodeConfig unicode;
  QualityConfig quality;
  DedupConfig dedup;
  TokenizeConfig tokenizer;
  ShardConfig shards;
  template <typename V>
  void fields(V& v) {
    v("name", name), v("parquet", parquet), v("input", input), v("extract", extract), v("unicode", unicode),
        v("quality", quality);
    v("dedup", dedup), v("tokenizer", tokenizer), v("shards", shards);
  }
};

// UserError for the first value that cannot be: everything that can be known before any work. A tokenizer
// that is given is loaded for that.
void check(const DataConfig& config);

// Rules with their thresholds, "on" or "off": what the report says about the config.
std::vector<RuleSetting> rules_of(const DataConfig& config);

struct PrepareRequest {
  std::vector<std::string> inputs;
  std::string output;
  DataConfig config;
  // Where the run and its artifacts are recorded; null: nowhere.
  store::Store* store = nullptr;
  // Called from the caller's thread: stage, units done, units in all.
  std::function<void(const std::string& stage, int64_t done, int64_t total)> progress = nullptr;
};

Result<PrepareReport> prepare(const PrepareRequest& request, ThreadPool& pool = compute_pool());

// The report of a folder that prepare() has finished. kNotFound before.
Result<PrepareReport> read_report(const std::string& output);

}  // namespace flywheel::data
