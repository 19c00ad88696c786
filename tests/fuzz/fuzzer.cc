#include "seeds.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/file.h"

// libFuzzer calls this before it reads its flags.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc != 3 || std::strcmp((*argv)[1], "--seeds") != 0) return 0;
  int number = 0;
  for (const std::string& seed : seeds()) {
    const std::string path = std::string((*argv)[2]) + "/seed" + std::to_string(number++);
    if (const auto written = flywheel::write_file(path, seed); !written.ok()) {
      std::fprintf(stderr, "%s\n", written.error().message.c_str());
      std::exit(1);
    }
  }
  std::exit(0);
}
