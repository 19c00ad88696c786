// Memory, how fast it reads, and what processes share.
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/check.h"
#include "base/file.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "doctor/doctor.h"

namespace flywheel::cli::doctor {
namespace {

constexpr double kLeastSharedBytes = 256e6;

// GB/s of reading memory that no cache holds, best of three passes over 512 MB.
double read_bandwidth_gb_s() {
  constexpr int64_t kWords = int64_t{64} << 20;
  std::vector<uint64_t> words(static_cast<size_t>(kWords), 1);
  double best = 0;
  for (int pass = 0; pass < 3; ++pass) {
    const Stopwatch clock;
    const double sum = compute_pool().parallel_sum(kWords, 1 << 18, [&](int64_t begin, int64_t end) {
      uint64_t lanes[8] = {};
      for (int64_t i = begin; i < end; i += 8) {
        for (int64_t lane = 0; lane < 8; ++lane) lanes[lane] += words[static_cast<size_t>(i + lane)];
      }
      uint64_t total = 0;
      for (const uint64_t lane : lanes) total += lane;
      return static_cast<double>(total);
    });
    CHECK(sum == static_cast<double>(kWords), "memory gave back {} of {}", sum, kWords);
    best = std::max(best, static_cast<double>(kWords) * 8 / clock.seconds() / 1e9);
  }
  return best;
}

// What the system can still give: MemAvailable counts caches that would be given up.
double available_bytes() {
  const std::string text = read_file("/proc/meminfo").value_or("");
  const size_t at = text.find("MemAvailable:");
  return at == std::string::npos ? 0 : std::strtod(text.c_str() + at + 13, nullptr) * 1024;
}

}  // namespace

void look_at_memory(Report& report) {
  const double ram =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  const double available = available_bytes();
  struct statvfs shm {};
  double shm_bytes = 0, shm_free = 0;
  if (statvfs("/dev/shm", &shm) == 0) {
    shm_bytes = static_cast<double>(shm.f_blocks) * static_cast<double>(shm.f_frsize);
    shm_free = static_cast<double>(shm.f_bavail) * static_cast<double>(shm.f_frsize);
  }
  // Too little for the measurement itself would only measure the swap.
  const double bandwidth = available > 2e9 ? read_bandwidth_gb_s() : 0;
  report.json["memory_bytes"] = ram;
  report.json["memory_available_bytes"] = available;
  report.json["memory_gb_s"] = bandwidth;
  report.json["shared_memory_bytes"] = shm_bytes;
  report.json["shared_memory_free_bytes"] = shm_free;
  report.lines.emplace_back(
      "memory", fmt::format("{}, {} free, {}", human_bytes(ram), human_bytes(available),
                            bandwidth > 0 ? fmt::format("reads at {:.0f} GB/s on all cores", bandwidth)
                                          : "too little to measure how fast it reads"));
  report.lines.emplace_back("shared memory", fmt::format("{} under /dev/shm, {} free", human_bytes(shm_bytes),
                                                         human_bytes(shm_free)));
  if (available < 1e9) {
    report.problems.push_back({"only " + human_bytes(available) + " of memory are free",
                               "end other programs; the demo needs about 3 GB"});
  }
  if (shm_free < kLeastSharedBytes) {
    report.problems.push_back({"/dev/shm has " + human_bytes(shm_free) + " free; workers share buffers there",
                               "mount -o remount,size=1G /dev/shm (in a container: --shm-size=1g)"});
  }
}

}  // namespace flywheel::cli::doctor
