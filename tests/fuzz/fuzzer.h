// What every fuzz_NAME.cc has beside LLVMFuzzerTestOneInput: the inputs to begin with.
#pragma once

#include <string>
#include <vector>

// Small inputs that the parser accepts, which together touch most of what it knows. `fuzz_NAME --seeds DIR`
// (seeds.cc) writes them as files.
std::vector<std::string> seeds();
