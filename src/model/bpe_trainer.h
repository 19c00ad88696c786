// Learns a byte-level BPE vocabulary from text and writes it as a tokenizer.json, which this house and the
// `tokenizers` library read alike.
//
// The result is a function of the configuration and the multiset of texts: not of their order, nor of how
// they were handed over, nor of the number of threads.
//
// Ownership: the trainer keeps counts of distinct pieces, not the texts.
// Threads: one caller; counting runs on the pool.
// Errors: train() gives kInvalid for a configuration that cannot be met (too small a vocabulary, no text, a
// pattern that is not known).
//
//   BpeTrainer trainer({.vocab_size = 8192, .special_tokens = {"<|endoftext|>"}});
//   while (reader.next(batch)) trainer.add(batch, compute_pool());
//   ASSIGN_OR_RETURN(std::string json, trainer.train());
//   RETURN_IF_ERROR(write_file("tokenizer.json", json));
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"

namespace flywheel::model {

struct BpeTrainerConfig {
  int64_t vocab_size = 32'000;  // special tokens, the 256 bytes and merges together
  int64_t min_frequency = 2;    // a pair seen less often is not merged
  // They get the first ids, in this order.
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  // How text is cut into pieces: gpt2, llama3, qwen2 or o200k. llama3's: words with the space before them,
  // digits in threes.
  std::string pattern = "llama3";
  // Called now and then with merges done and merges wanted; the last call has both as the text gave them.
  std::function<void(int64_t done, int64_t wanted)> progress = nullptr;
};

// kInvalid for a pattern that is not known, and for a vocabulary too small for the bytes and special tokens
// or of more than 2^24.
Result<void> check(const BpeTrainerConfig& config);

class BpeTrainer {
 public:
  explicit BpeTrainer(BpeTrainerConfig config);
  ~BpeTrainer();
  BpeTrainer(BpeTrainer&&) noexcept;

  void add(std::span<const std::string> texts, ThreadPool& pool);
  // Distinct pieces counted so far.
  size_t distinct_pieces() const;
  // The tokenizer.json.
  Result<std::string> train() const;

 private:
  struct Counts;
  BpeTrainerConfig config_;
  std::unique_ptr<Counts> counts_;
};

}  // namespace flywheel::model
