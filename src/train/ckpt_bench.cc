// What a checkpoint beside the training costs, and how fast it comes to the disk, beside a plain sequential
// write with sync of as many bytes in the same folder, by turns. bench/ckpt prints the result.
//
// Steps wait from the call of a save until each worker has copied its part; a checkpoint is on the disk when
// rank 0 has made it of all shards, model and SHA-256 included.
//
//   ckpt_bench ROUNDS STEPS WORKERS HIDDEN LAYERS ZERO FOLDER   prints one JSON line; FOLDER: where they go
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "base/file.h"
#include "base/json.h"
#include "model/decoder.h"
#include "train/checkpoint_info.h"
#include "train/side_for_benches.h"

using namespace flywheel;

namespace {

constexpr int64_t kVocabulary = 32000;

struct Sizes {
  int64_t rounds = 5, steps = 8, workers = 2, hidden = 288, layers = 6, zero = 0;
};

uint64_t bytes_in(const std::string& folder) {
  uint64_t sum = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) sum += entry.file_size();
  }
  return sum;
}

// Seconds until `bytes` of no pattern are on the disk.
Result<double> plain_write(const std::string& path, uint64_t bytes) {
  std::string chunk(8 << 20, '\0');
  Philox rng(7);
  for (size_t i = 0; i < chunk.size(); ++i) chunk[i] = static_cast<char>(rng.next_u32());
  const Stopwatch clock;
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  for (uint64_t left = bytes; left > 0;) {
    const uint64_t now = std::min<uint64_t>(left, chunk.size());
    RETURN_IF_ERROR(file.write(std::string_view(chunk).substr(0, now)));
    left -= now;
  }
  RETURN_IF_ERROR(file.commit());
  const double seconds = clock.seconds();
  RETURN_IF_ERROR(remove_all(path));
  return seconds;
}

struct Saving {
  train::Side& side;
  std::string folder;

  // Seconds that no step can begin in.
  Result<double> begin() const {
    const Stopwatch clock;
    const std::string args = Json{{"folder", folder}, {"save", 1}, {"loss", 1.0}}.dump();
    RETURN_IF_ERROR(side.workers.all().call(train::kSave, args).wait());
    return clock.seconds();
  }
  Result<void> end() const {
    ASSIGN_OR_RETURN(const std::string text,
                     side.workers.first().call(train::kSaved, folder, {.want_value = true}).get(0));
    ASSIGN_OR_RETURN(const Json info, parse_json(text));
    if (info.contains("error")) return make_error(ErrorCode::kIo, "{}", info["error"].get<std::string>());
    return {};
  }
};

Result<void> measure(const Sizes& sizes, const std::string& where) {
  const TempFolder temporary;
  const std::string base = (where.empty() ? temporary.path() : where) + "/flywheel-ckpt-bench";
  RETURN_IF_ERROR(train::write_random_tokens(temporary / "tokens", 200'000, kVocabulary));
  train::TrainConfig config;
  config.steps = 100'000;
  config.model = {.hidden_size = sizes.hidden,
                  .num_layers = sizes.layers,
                  .num_heads = sizes.hidden / 48,
                  .max_positions = 256};
  config.data.train = temporary / "tokens";
  config.batch = {.sequences = 8, .length = 256};
  config.mesh = {.data = sizes.workers, .zero = sizes.zero, .threads = 1};
  train::check(config);
  train::Inputs inputs{.data = {config.data.train, ""},
                       .decoder = train::decoder_config(config.model, kVocabulary)};
  ASSIGN_OR_RETURN(const train::Layout layout, train::make_layout(config, model::describe(inputs.decoder)));
  ASSIGN_OR_RETURN(train::Side side,
                   train::open_side(config, inputs, layout, temporary / "run", train::kNever));
  // The first one finds fresh memory and an empty folder.
  const Saving first{side, base + "/first"};
  ASSIGN_OR_RETURN(const double first_stall, first.begin());
  RETURN_IF_ERROR(first.end());
  const uint64_t bytes = bytes_in(first.folder);
  ASSIGN_OR_RETURN(const train::CheckpointInfo info, train::read_checkpoint_info(first.folder));

  std::vector<double> steps_s, stalls, costs, writes, plain;
  for (int64_t round = 0; round < sizes.rounds; ++round) {
    ASSIGN_OR_RETURN(const double step, side.run(sizes.steps));
    steps_s.push_back(step);
    {  // beside the training
      const Saving saving{side, fmt::format("{}/beside-{}", base, round)};
      const Stopwatch clock;
      ASSIGN_OR_RETURN(const double stall, saving.begin());
      ASSIGN_OR_RETURN([[maybe_unused]] const double beside, side.run(sizes.steps));
      stalls.push_back(stall / step);
      costs.push_back(clock.seconds() / step - static_cast<double>(sizes.steps));
      RETURN_IF_ERROR(saving.end());
      RETURN_IF_ERROR(remove_all(saving.folder));
    }
    ASSIGN_OR_RETURN([[maybe_unused]] const double settled, side.run(1));
    const auto write = [&]() -> Result<void> {
      const Saving saving{side, fmt::format("{}/alone-{}", base, round)};
      ASSIGN_OR_RETURN([[maybe_unused]] const double stall, saving.begin());
      const Stopwatch clock;
      RETURN_IF_ERROR(saving.end());
      writes.push_back(clock.seconds());
      return remove_all(saving.folder);
    };
    const auto plainly = [&]() -> Result<void> {
      ASSIGN_OR_RETURN(const double seconds, plain_write(base + "/plain", bytes));
      plain.push_back(seconds);
      return {};
    };
    RETURN_IF_ERROR(round % 2 == 0 ? write() : plainly());
    RETURN_IF_ERROR(round % 2 == 0 ? plainly() : write());
  }
  RETURN_IF_ERROR(side.workers.controller().close());
  RETURN_IF_ERROR(remove_all(base));
  std::printf("%s\n", Json{{"step_s", train::median(steps_s)},
                           {"first_stall_s", first_stall},
                           {"stall_steps", train::median(stalls)},
                           {"stalls", stalls},
                           {"cost_steps", train::median(costs)},
                           {"write_s", train::median(writes)},
                           {"best_write_s", *std::ranges::min_element(writes)},
                           {"writes", writes},
                           {"plain_s", train::median(plain)},
                           {"best_plain_s", *std::ranges::min_element(plain)},
                           {"plains", plain},
                           {"bytes", bytes},
                           {"shards", info.shards.size()},
                           {"parameters", layout.decoder.num_parameters()}}
                          .dump()
                          .c_str());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  Sizes sizes;
  int64_t* const given[] = {&sizes.rounds, &sizes.steps,  &sizes.workers,
                            &sizes.hidden, &sizes.layers, &sizes.zero};
  for (int i = 1; i < argc && i <= 6; ++i) *given[i - 1] = std::strtoll(argv[i], nullptr, 10);
  return train::bench_main(argc, argv, [&] { return measure(sizes, argc > 7 ? argv[7] : ""); });
}
