// flywheel doctor: what this machine has, and what would not work and how to mend it.
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <thread>

#include "base/cpu.h"
#include "base/env.h"
#include "base/file.h"
#include "base/json.h"
#include "base/process.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "cli.h"

namespace flywheel::cli {
namespace {

// GB/s of reading memory that no cache holds, best of three passes over 512 MB.
double memory_bandwidth_gb_s() {
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

struct Problem {
  std::string what, mend;
};

Json gpus(std::vector<Problem>& problems) {
  Json list = Json::array();
  const auto smi =
      run_process({"nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"},
                  {.deadline = Deadline::after_ms(10'000)});
  if (smi.ok() && smi->exit_code == 0) {
    for (size_t at = 0; at < smi->stdout_text.size();) {
      const size_t end = smi->stdout_text.find('\n', at);
      list.push_back(smi->stdout_text.substr(at, end - at));
      at = end == std::string::npos ? smi->stdout_text.size() : end + 1;
    }
#ifndef FLYWHEEL_HAS_CUDA
    problems.push_back(
        {"a GPU is here but this build has no CUDA code", "install nvcc and run `make build` again"});
#endif
  }
  return list;
}

int verb_doctor(const std::vector<std::string>& args) {
  CLI::App app{
      "Look at this machine: cores, instruction sets, memory, GPUs, libraries, disk; and what would not "
      "work."};
  bool json = false;
  app.add_flag("--json", json, "One JSON object on stdout");
  app.footer("  flywheel doctor\n  flywheel doctor --json | jq .memory_gb_s\n");
  if (auto exit = parse(app, "doctor", args)) return *exit;

  std::vector<Problem> problems;
  const std::string home = env::home();
  double free_disk = 0;
  if (auto made = make_folders(home); !made.ok()) {
    problems.push_back({made.error().message, "choose another folder with --home or FLYWHEEL_HOME"});
  } else {
    struct statvfs disk {};
    if (statvfs(home.c_str(), &disk) == 0) {
      free_disk = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
    }
    if (free_disk < 5e9) {
      problems.push_back(
          {"only " + human_bytes(free_disk) + " free under " + home, "free some, or choose --home"});
    }
    if (access(home.c_str(), W_OK) != 0)
      problems.push_back({home + " cannot be written", "choose another --home"});
  }
  const double ram =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  const double available =
      static_cast<double>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  struct statvfs shm {};
  double shm_bytes = 0;
  if (statvfs("/dev/shm", &shm) == 0)
    shm_bytes = static_cast<double>(shm.f_bavail) * static_cast<double>(shm.f_frsize);
  if (shm_bytes < 256e6) {
    problems.push_back({"/dev/shm has " + human_bytes(shm_bytes) + "; workers share buffers there",
                        "mount -o remount,size=1G /dev/shm (in a container: --shm-size=1g)"});
  }
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  if (files.rlim_max < 4096) {
    problems.push_back(
        {"at most " + std::to_string(files.rlim_max) + " open files: about that many streams at once",
         "raise it with ulimit -Hn 65536"});
  }
  if (isa() == Isa::kBaseline) {
    problems.push_back({"no AVX2: kernels run their baseline variants, many times slower",
                        env::isa_limit().empty() ? "use a processor with AVX2" : "unset FLYWHEEL_ISA"});
  }
  const Json gpu_list = gpus(problems);
  const double bandwidth = memory_bandwidth_gb_s();

  Json out = {{"cpu", cpu_model()},
              {"cores", usable_cores()},
              {"instruction_set", isa_name(isa())},
              {"machine_instruction_set", isa_name(machine_isa())},
              {"memory_bytes", ram},
              {"memory_available_bytes", available},
              {"memory_gb_s", bandwidth},
              {"shared_memory_bytes", shm_bytes},
              {"gpus", gpu_list},
              {"home", home},
              {"disk_free_bytes", free_disk},
              {"open_files", files.rlim_cur}};
#ifdef FLYWHEEL_TORCH
  out["torch"] = true;
#else
  out["torch"] = false;
  problems.push_back({"built without libtorch: train is missing", "make build with -DFLYWHEEL_TORCH=ON"});
#endif
#ifdef FLYWHEEL_HAS_CUDA
  out["cuda_code"] = true;
#else
  out["cuda_code"] = false;
#endif
  out["problems"] = Json::array();
  for (const auto& problem : problems)
    out["problems"].push_back({{"what", problem.what}, {"mend", problem.mend}});
  if (json) {
    std::printf("%s\n", out.dump().c_str());
    return problems.empty() ? 0 : 1;
  }
  std::printf("processor     %s, %d cores, kernels use %s%s\n", cpu_model().c_str(), usable_cores(),
              isa_name(isa()), isa() == machine_isa() ? "" : " (FLYWHEEL_ISA holds them back)");
  std::printf("memory        %s, %s free, reads at %.0f GB/s\n", human_bytes(ram).c_str(),
              human_bytes(available).c_str(), bandwidth);
  std::printf("shared memory %s under /dev/shm\n", human_bytes(shm_bytes).c_str());
  if (gpu_list.empty()) std::printf("GPU           none\n");
  for (const auto& gpu : gpu_list) std::printf("GPU           %s\n", gpu.get<std::string>().c_str());
  std::printf("built with    libtorch: %s, CUDA code: %s\n", out["torch"].get<bool>() ? "yes" : "no",
              out["cuda_code"].get<bool>() ? "yes" : "no");
  std::printf("home          %s, %s free\n", home.c_str(), human_bytes(free_disk).c_str());
  for (const auto& problem : problems)
    std::printf("\n! %s\n  %s\n", problem.what.c_str(), problem.mend.c_str());
  std::printf("\n%s\n", problems.empty() ? "Nothing stands in the way."
                                         : "What is marked ! would not work as it should.");
  return problems.empty() ? 0 : 1;
}

REGISTER_VERB(doctor, "What this machine has, and what would not work and how to mend it", verb_doctor);

}  // namespace
}  // namespace flywheel::cli
