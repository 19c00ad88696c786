// The fuzzers without libFuzzer: each takes its seeds and some mutations of them.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "base/mutation_for_tests.h"
#include "fuzzer.h"

namespace {

// Of each seed: all fuzzers together stay a fast test; `make fuzz` goes on from here.
constexpr int kMutations = 100;

class Fuzzers : public testing::TestWithParam<Fuzzer> {};

TEST_P(Fuzzers, SeedsAndTheirMutationsKeepWhatTheParserPromises) {
  const Fuzzer& fuzzer = GetParam();
  const std::vector<std::string> seeds = fuzzer.seeds();
  ASSERT_FALSE(seeds.empty());
  // A promise that does not hold ends the program: the input must be found after that.
  const std::string at_hand = testing::TempDir() + "fuzz_" + fuzzer.name + "_" + std::to_string(::getpid());
  std::printf("fuzz_%s: should this end the program, its input is in %s\n", fuzzer.name.c_str(),
              at_hand.c_str());
  std::fflush(stdout);
  for (size_t number = 0; number < seeds.size(); ++number) {
    const std::string& seed = seeds[number];
    flywheel::Philox rng(20261122, number);
    for (int round = 0; round <= kMutations; ++round) {
      std::string input = seed;
      if (round > 0) {
        mutate(input, rng, {.alphabet = seed, .most_edits = 4, .most_inserted = 16, .most_erased = 8});
      }
      std::ofstream(at_hand, std::ios::binary) << input;
      fuzzer.run(input);
    }
  }
  std::filesystem::remove(at_hand);
}

INSTANTIATE_TEST_SUITE_P(All, Fuzzers, testing::ValuesIn(fuzzers()),
                         [](const testing::TestParamInfo<Fuzzer>& info) { return info.param.name; });

}  // namespace
