// Records per second through the command log, durable on disk, beside what the disk itself takes: the same
// bytes in frames of the same size, write() and fdatasync() and nothing else. Prints one JSON line.
//   runtime_log_bench FOLDER
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "runtime/command_log.h"

namespace flywheel::runtime {
namespace {

Command example(uint64_t sequence) {
  Command command;
  command.sequence = sequence;
  command.operation = "train.step";
  command.args.assign(64, 'a');
  command.generator_key = sequence * 0x9E3779B97F4A7C15u;
  command.cursor = static_cast<int64_t>(sequence);
  command.deadline_ms = 600'000;
  return command;
}

}  // namespace
}  // namespace flywheel::runtime

int main(int argc, char** argv) {
  using namespace flywheel;
  using namespace flywheel::runtime;
  init_logging("warn");
  const std::string folder = argc > 1 ? argv[1] : ".";
  const std::string path = folder + "/log_bench.log";
  constexpr uint64_t kRecords = 1'000'000;
  std::atomic<uint64_t> groups{0};
  double rate = 0;
  uint64_t bytes = 0;
  {
    auto log = CommandLog::open(
                   path, 0, {.sync = LogSync::kDisk}, [&](uint64_t) { ++groups; }, [](const Error&) {})
                   .value();
    const Stopwatch clock;
    std::string record;
    uint64_t position = 0;
    for (uint64_t i = 1; i <= kRecords; ++i) {
      record.clear();
      append_record(record, RecordType::kCommand, example(i));
      position = log->append(record);
      log->flush();
      // As the controller does: at most so many commands that nobody has confirmed.
      while (i % 1024 == 0 && position - log->durable() > (size_t{4} << 20)) ::usleep(50);
    }
    log->sync(Deadline::after_ms(60'000)).value();
    rate = static_cast<double>(kRecords) / clock.seconds();
    bytes = file_size(path).value();
  }
  double raw_rate = 0;
  {
    const int fd = ::open(path.c_str(), O_WRONLY | O_TRUNC | O_APPEND | O_CREAT, 0644);
    const std::string frame(bytes / groups, 'x');
    const Stopwatch clock;
    for (uint64_t i = 0; i < groups; ++i) {
      if (::write(fd, frame.data(), frame.size()) < 0 || ::fdatasync(fd) != 0) return 1;
    }
    raw_rate = static_cast<double>(kRecords) / clock.seconds();
    ::close(fd);
  }
  (void)remove_all(path);
  const Json out = {{"records_per_s", rate},
                    {"disk_records_per_s", raw_rate},
                    {"groups", groups.load()},
                    {"record_bytes", static_cast<double>(bytes) / kRecords}};
  std::printf("%s\n", out.dump().c_str());
  return 0;
}
