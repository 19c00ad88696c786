// For tests: the logits of every position, and the export of a model.
//
//   hf_logits logits MODEL OUT ID...     OUT: f32, [tokens, vocabulary]
//   hf_logits export MODEL FOLDER        as f32
#include <cstdio>
#include <cstring>

#include "base/file.h"
#include "base/log.h"
#include "engine/executor.h"
#include "engine/scheduler.h"
#include "model/hf_folder.h"
#include "model/open_model.h"

namespace flywheel {
namespace {

Result<void> write_logits(const model::OpenModel& model, const std::string& out,
                          const std::vector<int32_t>& ids) {
  ThreadPool& pool = compute_pool();
  ASSIGN_OR_RETURN(model::DecoderWeights weights,
                   model::load_decoder_weights(model.decoder, model.source, {}, pool));
  const auto T = static_cast<int64_t>(ids.size());
  engine::Executor executor(model.decoder, std::move(weights),
                            {.max_tokens = T,
                             .max_logit_rows = T,
                             .max_positions = T,
                             .num_blocks = engine::blocks_for(T),
                             .kv_dtype = kernels::DType::kF32},
                            pool);
  std::vector<int32_t> table;
  engine::Batch batch;
  for (int32_t block = 0; block < engine::blocks_for(T); ++block) table.push_back(block);
  for (int32_t t = 0; t < T; ++t) {
    batch.ids_T.push_back(ids[static_cast<size_t>(t)]);
    batch.positions_T.push_back(t);
    batch.logit_rows.push_back(t);
  }
  batch.sequences.push_back({table.data(), 0, T, 0});
  const float* logits = executor.forward(batch);
  const auto bytes = static_cast<size_t>(T * model.decoder.config.vocab_size) * sizeof(float);
  return write_file(out, {reinterpret_cast<const char*>(logits), bytes});
}

int run(int argc, char** argv) {
  init_logging("error");
  if (argc < 4) return 2;
  const auto model = model::open_model(argv[2]);
  if (!model.ok()) return std::fprintf(stderr, "%s\n", model.error().message.c_str()), 1;
  std::vector<int32_t> ids;
  for (int i = 4; i < argc; ++i) ids.push_back(static_cast<int32_t>(std::strtol(argv[i], nullptr, 10)));
  const Result<void> done = std::strcmp(argv[1], "logits") == 0
                                ? write_logits(model.value(), argv[3], ids)
                                : model::export_hf_folder(argv[3], model.value(), kernels::DType::kF32);
  if (!done.ok()) return std::fprintf(stderr, "%s\n", done.error().message.c_str()), 1;
  return 0;
}

}  // namespace
}  // namespace flywheel

int main(int argc, char** argv) {
  return flywheel::run(argc, argv);
}
