// The command log: as it is, and with every frame's checksum made right, so that what lies behind the
// checksum is reached too. Records or an error; what was read prints.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"
#include "fuzzer.h"
#include "runtime/log_table.h"

using namespace flywheel::runtime;

namespace {

constexpr size_t kHeader = 24;

// Magic, place and checksum of every frame that the lengths give.
void make_sound(std::string& file) {
  for (size_t at = 0; file.size() - at >= kHeader;) {
    uint32_t length = 0;
    std::memcpy(&length, file.data() + at + 16, 4);
    length %= static_cast<uint32_t>(file.size() - at - kHeader + 1);
    const uint64_t offset = at;
    std::memcpy(file.data() + at, "FWL1", 4);
    std::memcpy(file.data() + at + 8, &offset, 8);
    std::memcpy(file.data() + at + 16, &length, 4);
    const uint32_t crc = flywheel::crc32c(std::string_view(file).substr(at + 8, kHeader - 8 + length));
    std::memcpy(file.data() + at + 4, &crc, 4);
    at += kHeader + length;
  }
}

void read(const std::string& file) {
  static const int fd = ::memfd_create("log", 0);
  CHECK(::ftruncate(fd, 0) == 0 && ::pwrite(fd, file.data(), file.size(), 0) == ssize_t(file.size()),
        "memfd");
  const auto content = read_log("/proc/self/fd/" + std::to_string(fd));
  if (!content.ok()) return;
  CHECK(content->end + content->torn_bytes == file.size(), "{} + {} of {}", content->end, content->torn_bytes,
        file.size());
  const auto lines = log_lines(*content);
  if (lines.ok()) (void)log_table(*lines);
}

std::vector<std::string> seeds() {
  std::string records;
  append_record(records, RecordType::kRun, RunRecord{.run = "r", .seed = 7});
  append_record(records, RecordType::kMesh, MeshRecord{.name = "train", .shape = Shape({{"data", 2}})});
  append_record(records, RecordType::kEpoch, EpochRecord{.epoch = 1, .reason = "start"});
  append_record(records, RecordType::kCommand,
                Command{.sequence = 1, .epoch = 1, .operation = "op", .args = "a"});
  append_record(records, RecordType::kResult, ResultRecord{.sequence = 1, .epoch = 1, .outcomes = {{}, {}}});
  std::string more;
  append_record(more, RecordType::kValue, ValueRecord{.sequence = 1, .value = "v"});
  append_record(more, RecordType::kWatermark, WatermarkRecord{.watermark = 1, .durable = true});
  append_record(more, RecordType::kMeshClose,
                MeshCloseRecord{.mesh = 1, .last_sequence = 1, .missing = {1}, .reason = "no spare"});
  append_record(more, RecordType::kClose, CloseRecord{.last_sequence = 1});
  std::string file;
  for (const std::string& frame : {records, more}) {
    const auto length = static_cast<uint32_t>(frame.size());
    std::string header(kHeader, '\0');
    std::memcpy(header.data() + 16, &length, 4);
    file += header + frame;
  }
  make_sound(file);
  return {file};
}

void run(std::string_view input) {
  std::string file(input);
  read(file);
  make_sound(file);
  read(file);
}

const FuzzerRegistration registration("command_log", seeds, run);

}  // namespace
