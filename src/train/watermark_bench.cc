// What snapshots of a run in memory cost it: the same steps on two meshes of 2 workers, one with snapshots at
// the default interval and one without, by turns. bench/watermark prints the result.
//
// The cost is counted: how long commands waited while states were copied, and the processor time of making
// the bytes, over the time of all turns, in which the interval goes on. The turns' own times are printed
// beside it; on two cores they differ by more than snapshots cost. A turn lasts as long as the interval.
// Prints one JSON line.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "base/file.h"
#include "base/json.h"
#include "model/decoder.h"
#include "train/side_for_benches.h"

using namespace flywheel;
using train::kNever;
using train::kWarmUpSteps;
using train::median;
using train::open_side;
using train::Side;

namespace {

constexpr int64_t kVocabulary = 32000;

Result<void> measure(int64_t rounds) {
  const TempFolder folder;
  RETURN_IF_ERROR(train::write_random_tokens(folder / "tokens", 200'000, kVocabulary));
  train::TrainConfig config;
  config.steps = 100'000;
  config.model = {
      .hidden_size = 288, .intermediate_size = 768, .num_layers = 6, .num_heads = 6, .max_positions = 256};
  config.data.train = folder / "tokens";
  config.batch = {.sequences = 8, .length = 256};
  config.mesh = {.data = 2, .threads = 1};
  train::Inputs inputs{.data = {config.data.train, ""},
                       .decoder = train::decoder_config(config.model, kVocabulary)};
  ASSIGN_OR_RETURN(const train::Layout layout, train::make_layout(config, model::describe(inputs.decoder)));
  const int64_t parameters = layout.decoder.num_parameters();
  const int64_t interval_ms = train::snapshot_interval_ms(parameters);
  ASSIGN_OR_RETURN(Side with, open_side(config, inputs, layout, folder / "with", interval_ms));
  ASSIGN_OR_RETURN(Side without, open_side(config, inputs, layout, folder / "without", kNever));
  ASSIGN_OR_RETURN(const double about, without.run(kWarmUpSteps));
  const auto steps_in = [&](double seconds) { return static_cast<int64_t>(std::ceil(seconds / about)); };
  // The mesh stretches the interval by what its last snapshot cost. The first two cost more, as their memory
  // is fresh; from then on it is used again.
  while (with.workers.all().status().watermarks < 3) RETURN_IF_ERROR(with.run(2));

  std::vector<double> intervals, with_s, without_s, shares, freezes, costs;
  double all_turns_s = 0, all_spent_s = 0;
  const uint64_t before = with.workers.all().status().watermarks;
  for (int64_t round = 0; round < rounds; ++round) {
    const runtime::MeshStatus begin = with.workers.all().status();
    intervals.push_back(begin.watermark_interval_seconds);
    const int64_t steps = steps_in(intervals.back());
    for (const bool snapshots : {round % 2 == 0, round % 2 != 0}) {
      ASSIGN_OR_RETURN(const double seconds, (snapshots ? with : without).run(steps));
      (snapshots ? with_s : without_s).push_back(seconds);
    }
    const runtime::MeshStatus end = with.workers.all().status();
    // Both sides': the interval goes on while the other side runs.
    const double turns_s = (with_s.back() + without_s.back()) * static_cast<double>(steps);
    const double spent_s = end.watermarks_cost_seconds - begin.watermarks_cost_seconds;
    shares.push_back(spent_s / turns_s);
    all_turns_s += turns_s, all_spent_s += spent_s;
    freezes.push_back(end.last_freeze_seconds);
    costs.push_back(end.last_watermark_cost_seconds);
  }
  const uint64_t watermarks = with.workers.all().status().watermarks - before;
  const double a_turn = static_cast<double>(watermarks) / static_cast<double>(rounds);
  RETURN_IF_ERROR(with.workers.controller().close());
  RETURN_IF_ERROR(without.workers.controller().close());
  std::printf("%s\n", Json{{"with_s", median(with_s)},
                           {"without_s", median(without_s)},
                           {"cost", all_spent_s / all_turns_s},
                           {"costs", shares},
                           {"freeze_s", median(freezes)},
                           {"snapshot_s", median(costs)},
                           {"bound", runtime::ControllerOptions{}.watermark_cost},
                           {"interval_s", median(intervals)},
                           {"snapshots_a_turn", a_turn},
                           {"parameters", parameters}}
                          .dump()
                          .c_str());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  return train::bench_main(argc, argv,
                           [&] { return measure(argc > 1 ? std::strtoll(argv[1], nullptr, 10) : 6); });
}
