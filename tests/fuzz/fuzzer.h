// What a fuzzer is: inputs to begin with, and what is done with any input. Each fuzz_NAME.cc registers one:
//
//   std::vector<std::string> seeds() { ... }
//   void run(std::string_view input) { ... }
//   const FuzzerRegistration registration("gguf", seeds, run);
//
// `make fuzz` links each with libFuzzer into a program of its own; every other build links all of them into
// one test, fuzzers_test, which takes the seeds and some mutations of them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

struct Fuzzer {
  std::string name;
  // Small inputs that the parser accepts, which together touch most of what it knows.
  std::vector<std::string> (*seeds)() = nullptr;
  // Takes any bytes; ends the program (CHECK, a sanitizer) where what the parser promises does not hold.
  void (*run)(std::string_view input) = nullptr;
};

// All that this program has.
const std::vector<Fuzzer>& fuzzers();

struct FuzzerRegistration {
  FuzzerRegistration(const char* name, std::vector<std::string> (*seeds)(),
                     void (*run)(std::string_view input));
};
