// The frame of prepare()'s stages: a key over everything that a stage depends on, the record that it is done,
// and work in parallel with results in order.
#pragma once

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "base/file_lock.h"
#include "base/thread_pool.h"
#include "data/fetch.h"
#include "data/prepare.h"
#include "model/bpe_trainer.h"
#include "model/tokenizer.h"

namespace flywheel::data {

// What a stage is called with and says about itself.
struct Stage {
  std::string name;
  std::string key;  // SHA-256 of its inputs and config
  // Files that it writes, relative to the output folder. The body adds those whose names it learns only then.
  std::vector<std::string> outputs;
};

struct StageContext {
  const PrepareRequest& request;
  ThreadPool& pool;
  PrepareReport& report;

  std::string path(const std::string& name) const { return request.output + "/" + name; }
  void progress(const std::string& stage, int64_t done, int64_t total) const {
    if (request.progress) request.progress(stage, done, total);
  }
  // Runs `body`, or takes the report of the last run with the same key when every file that it wrote still
  // has its size and checksum (xxHash). `stage` is looked at again after the body.
  Result<void> run(const Stage& stage, const std::function<Result<void>(StageReport&)>& body);
};

// SHA-256 over the parts, each with its length.
std::string stage_key(const std::vector<std::string>& parts);

// produce(i) on the pool for i in [0, n), consume(i, result) on this thread in order. Items are taken in
// windows of about `window_cost`; within one the costly go first.
template <typename Cost, typename Produce, typename Consume>
Result<void> for_each_ordered(int64_t n, ThreadPool& pool, int64_t window_cost, Cost&& cost,
                              Produce&& produce, Consume&& consume) {
  using Item = decltype(produce(int64_t{0}));
  for (int64_t begin = 0; begin < n;) {
    int64_t end = begin, sum = 0;
    while (end < n && (end == begin || (sum < window_cost && end - begin < 4096))) sum += cost(end++);
    std::vector<int64_t> order(static_cast<size_t>(end - begin));
    std::iota(order.begin(), order.end(), begin);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
    std::vector<std::optional<Item>> items(order.size());
    pool.parallel_for(end - begin, 1, [&](int64_t from, int64_t to) {
      for (int64_t k = from; k < to; ++k) {
        const int64_t i = order[static_cast<size_t>(k)];
        items[static_cast<size_t>(i - begin)].emplace(produce(i));
      }
    });
    for (int64_t i = begin; i < end; ++i)
      RETURN_IF_ERROR(consume(i, std::move(*items[static_cast<size_t>(i - begin)])));
    begin = end;
  }
  return {};
}

// The output folder for this call alone, without what a killed one left half written. kUnavailable: another
// call has it. UserError: what lies there is no dataset, and would be written over.
Result<FileLock> take_output(const std::string& output);
// inputs.jsonl
Result<void> write_inputs(const std::string& path, const std::vector<HashedInput>& inputs);
// report.json and report.md in the output folder.
Result<void> write_report(const std::string& output, const PrepareReport& report);

// What every preparation has around its work: its config beside what it makes, what it was given in the
// report, and, with a store, a run that ends as the work does.
struct Preparation {
  std::string output, name;
  std::string config;  // resolved
  store::Store* store = nullptr;
  const InputList& inputs;
};
// With the output folder taken. `work` is given the run, or nullptr.
Result<void> prepare_around(const Preparation& preparation, PrepareReport& report,
                            const std::function<Result<void>(store::Run*)>& work);

// A number in [0, 1) that depends on the text alone: what is below the share that is asked for belongs to it.
double text_position(std::string_view text, uint64_t seed);

// A JSONL file in pieces of whole lines.
std::vector<std::string_view> line_chunks(std::string_view bytes, size_t chunk_bytes);

// The file that tokenizer.path names: itself, or the tokenizer.json in it.
std::string tokenizer_file(const TokenizeConfig& config);
model::BpeTrainerConfig trainer_config(const TokenizeConfig& config);
// The token behind each document. UserError when the tokenizer has none.
model::TokenId document_end_of(const model::Tokenizer& tokenizer, const TokenizeConfig& config);

// The stages, in order. Each appends its report.
Result<void> extract_stage(StageContext& context, const InputList& inputs, const std::string& key);
Result<void> clean_stage(StageContext& context, const std::string& key);
Result<void> dedup_stage(StageContext& context, const std::string& key);
Result<void> tokenizer_stage(StageContext& context, const std::string& key);
Result<void> shards_stage(StageContext& context, const std::string& key);

}  // namespace flywheel::data
