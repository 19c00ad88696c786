#include "base/cpu.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <thread>

namespace flywheel {
namespace {

TEST(Cpu, CoresAreThoseThatAQuotaFills) {
  EXPECT_GT(usable_core_seconds(), 0);
  EXPECT_EQ(usable_cores(), std::max(1, static_cast<int>(std::ceil(usable_core_seconds()))));
}

TEST(Cpu, CoresAreThoseOfTheThreadThatAsks) {
  std::thread([] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    EXPECT_EQ(usable_cores(), 1);
    EXPECT_LE(usable_core_seconds(), 1);
  }).join();
}

TEST(Cpu, WhatAvx512LacksIsNamed) {
  EXPECT_EQ(describe_missing_avx512({}), "");
  EXPECT_EQ(describe_missing_avx512({"VBMI", "BF16"}),
            "of AVX-512 the processor lacks VBMI, BF16, which its kernels need");
  EXPECT_EQ(describe_missing_avx512({"F", "BW", "VL", "DQ", "VBMI", "VNNI", "BF16"}),
            "the processor has no AVX-512");
}

// The kernel of the system tells the same of this machine.
TEST(Cpu, WhatIsMissingHereIsWhatTheSystemSays) {
  EXPECT_EQ(missing_avx512().empty(), machine_isa() == Isa::kAvx512);
#if defined(__x86_64__)
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line) && !line.starts_with("flags")) continue;
  if (line.empty()) GTEST_SKIP() << "/proc/cpuinfo has no flags";
  std::istringstream words(line);
  const std::set<std::string> flags{std::istream_iterator<std::string>(words), {}};
  std::vector<std::string> expected;
  for (const auto& [part, flag] : {std::pair{"F", "avx512f"},
                                   {"BW", "avx512bw"},
                                   {"VL", "avx512vl"},
                                   {"DQ", "avx512dq"},
                                   {"VBMI", "avx512vbmi"},
                                   {"VNNI", "avx512_vnni"},
                                   {"BF16", "avx512_bf16"}}) {
    if (!flags.contains(flag)) expected.emplace_back(part);
  }
  EXPECT_EQ(missing_avx512(), expected);
#endif
}

}  // namespace
}  // namespace flywheel
