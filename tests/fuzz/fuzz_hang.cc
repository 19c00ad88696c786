// A finding about a hang: as it is, and with its checksums made right, so that what lies behind them is
// reached too. A finding or an error; what was read prints.
#include <cstdint>
#include <cstring>

#include "base/hash.h"
#include "fuzzer.h"
#include "runtime/hang.h"

using namespace flywheel::runtime;

namespace {

constexpr size_t kHeader = 24;

void make_sound(std::string& file) {
  if (file.size() < kHeader) return;
  const uint64_t size = file.size() - kHeader;
  const uint32_t body = flywheel::crc32c(std::string_view(file).substr(kHeader));
  std::memcpy(file.data(), "FWHANG01", 8);
  std::memcpy(file.data() + 8, &size, 8);
  std::memcpy(file.data() + 16, &body, 4);
  const uint32_t header = flywheel::crc32c(std::string_view(file).substr(0, 20));
  std::memcpy(file.data() + 20, &header, 4);
}

void read(const std::string& file) {
  const auto hang = parse_hang(file, "fuzz");
  if (hang.ok()) (void)hang_text(*hang, true);
}

std::vector<std::string> seeds() {
  Hang hang{.run = "r", .mesh = "train", .shape = Shape({{"data", 2}}), .epoch = 1, .sequence = 17};
  hang.operation = "train.step";
  RankReport report{.rank = 0, .answered = true, .epoch = 1};
  report.events.push_back({.name = "train.step", .epoch = 1, .number = 17, .begun_us = 5});
  report.events.push_back({Activity::kCollective, "data[0]", 1, 3, 7, 4});
  report.threads.push_back({7, "main", "in futex", {"module(+0x1) f()"}});
  hang.reports = {report, {.rank = 1, .stopped = true, .silent_ms = 800}};
  hang.finding = diagnose(hang);
  return {hang_bytes(hang)};
}

void run(std::string_view input) {
  std::string file(input);
  read(file);
  make_sound(file);
  read(file);
}

const FuzzerRegistration registration("hang", seeds, run);

}  // namespace
