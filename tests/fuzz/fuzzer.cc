#include "fuzzer.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/check.h"
#include "base/file.h"

namespace {

std::vector<Fuzzer>& registered() {
  static std::vector<Fuzzer> all;
  return all;
}

// Of a program of libFuzzer's.
const Fuzzer& the_fuzzer() {
  CHECK(registered().size() == 1, "{} fuzzers in one program of libFuzzer", registered().size());
  return registered().front();
}

}  // namespace

const std::vector<Fuzzer>& fuzzers() {
  return registered();
}

FuzzerRegistration::FuzzerRegistration(const char* name, std::vector<std::string> (*seeds)(),
                                       void (*run)(std::string_view input)) {
  registered().push_back({name, seeds, run});
}

// libFuzzer calls this before it reads its flags. `fuzz_NAME --seeds DIR` writes the seeds as files.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc != 3 || std::strcmp((*argv)[1], "--seeds") != 0) return 0;
  int number = 0;
  for (const std::string& seed : the_fuzzer().seeds()) {
    const std::string path = std::string((*argv)[2]) + "/seed" + std::to_string(number++);
    if (const auto written = flywheel::write_file(path, seed); !written.ok()) {
      std::fprintf(stderr, "%s\n", written.error().message.c_str());
      std::exit(1);
    }
  }
  std::exit(0);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Fuzzer& fuzzer = the_fuzzer();
  fuzzer.run({reinterpret_cast<const char*>(data), size});
  return 0;
}
