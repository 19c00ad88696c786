// Recovery as text: testdata/recovery/*.txt say what runs, who is hurt when, and what must follow.
//
//   mesh data=2                          its axes
//   steps 40                             commands 2 to 41 (command 1 makes the states)
//   kill worker 1 in command 17          before it has answered      } rank 1 is SIGKILLed
//   kill worker 1 2 after command 17     when the program has seen it }
//   stop worker 1 after command 17       SIGSTOP
//   stop worker 1 for 300 ms after ...   and SIGCONT
//   stop controller for 2500 ms after ...
//   continue worker 1 after command 30   SIGCONT to the process that was stopped
//   kill controller after command 20     the same program is started again
//   watermark after command 20           waits until one at 20 or later is in memory
//   checkpoint after command 20          and on disk
//   damage replicated of the last watermark after command 20      a bit of that piece on disk, of the newest
//   damage rank-1 of every watermark after command 20             ... or of all
//   cut 7 bytes of the log               while no controller runs, before it is started again
//   flip a bit of the log
//   workers cannot be killed             as on a host that nobody reaches
//   lease 500 ms
//   -> same result                       as the undisturbed run: all digests of all ranks
//   -> recoveries 1                      in the last life of the program
//   -> lives 2                           how often the program was started
//   -> failure TEXT                      one that the controller reported contains it
//   -> log TEXT                          a line of `flywheel log show` contains it
//   -> error TEXT                        the last life ended with it
//
// After every case no process of it is left.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/process.h"
#include "runtime/controller.h"
#include "runtime/log_table.h"

namespace flywheel::runtime {
namespace {

constexpr int64_t kPatienceMs = 20'000;

struct Harm {
  enum class What {
    kKill,
    kStop,
    kContinue,
    kController,
    kStopController,
    kWatermark,
    kCheckpoint,
    kDamage
  } what = What::kKill;
  uint64_t after = 0;
  std::vector<int> ranks;
  int64_t for_ms = 0;
  std::string piece;   // that is damaged
  bool every = false;  // of every watermark
};

struct Case {
  std::vector<Axis> axes;
  int steps = 0;
  std::vector<Harm> harms;
  std::string self;  // "1 17": rank and command of a worker that kills itself
  int64_t cut_bytes = 0, lease_ms = 5000;
  bool flip = false, unkillable = false;
  std::vector<std::string> expected;
};

std::vector<std::string> words_of(const std::string& line) {
  std::istringstream stream(line);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

// "kill worker 1 2 after command 17", "stop worker 1 for 300 ms after command 17".
Harm parse_harm(const std::vector<std::string>& words) {
  static const std::map<std::string, Harm::What> kWhat = {{"kill", Harm::What::kKill},
                                                          {"stop", Harm::What::kStop},
                                                          {"continue", Harm::What::kContinue},
                                                          {"watermark", Harm::What::kWatermark},
                                                          {"checkpoint", Harm::What::kCheckpoint},
                                                          {"damage", Harm::What::kDamage}};
  Harm harm;
  harm.what = kWhat.at(words[0]);
  if (harm.what == Harm::What::kDamage) harm.piece = words.at(1);
  for (size_t i = 1; i < words.size(); ++i) {
    if (words[i] == "controller")
      harm.what = harm.what == Harm::What::kStop ? Harm::What::kStopController : Harm::What::kController;
    if (words[i] == "every") harm.every = true;
    if (words[i] == "for")
      harm.for_ms = std::stoll(words.at(++i)), ++i;
    else if (words[i] == "command")
      harm.after = std::stoull(words.at(++i));
    else if (std::isdigit(words[i][0]) != 0)
      harm.ranks.push_back(std::stoi(words[i]));
  }
  return harm;
}

Case parse_case(const std::string& path) {
  Case parsed;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto words = words_of(line.substr(0, line.find('#')));
    if (words.empty()) continue;
    if (words[0] == "->") {
      parsed.expected.push_back(line.substr(line.find("->") + 3));
    } else if (words[0] == "mesh") {
      for (size_t i = 1; i < words.size(); ++i) {
        const size_t equals = words[i].find('=');
        parsed.axes.push_back({words[i].substr(0, equals), std::stoi(words[i].substr(equals + 1))});
      }
    } else if (words[0] == "steps") {
      parsed.steps = std::stoi(words[1]);
    } else if (words[0] == "cut") {
      parsed.cut_bytes = std::stoll(words[1]);
    } else if (words[0] == "flip") {
      parsed.flip = true;
    } else if (words[0] == "workers") {
      parsed.unkillable = true;
    } else if (words[0] == "lease") {
      parsed.lease_ms = std::stoll(words[1]);
    } else if (words.size() == 6 && words[3] == "in") {
      parsed.self = words[2] + " " + words[5];
    } else {
      parsed.harms.push_back(parse_harm(words));
    }
  }
  return parsed;
}

// Its processes stay when they are given up.
class OutOfReach : public Launcher {
  struct Left : WorkerProcess {
    explicit Left(Process started) : process(std::move(started)) {}
    ~Left() override { process.release(); }
    std::string describe() const override { return fmt::format("pid {}", process.pid()); }
    std::optional<ExitStatus> ended() override {
      return process.running() ? std::nullopt : std::optional(process.wait(Deadline::after_ms(0)).value());
    }
    int exit_fd() const override { return -1; }
    void kill() override {}
    Process process;
  };

 public:
  Result<std::unique_ptr<WorkerProcess>> start(const WorkerSpec& spec) override {
    ASSIGN_OR_RETURN(Process started,
                     Process::start({"/proc/self/exe", "worker"}, {.env = spec.env, .new_group = true}));
    return std::unique_ptr<WorkerProcess>(std::make_unique<Left>(std::move(started)));
  }
};

bool alive(int64_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(stat, text);
  const size_t end = text.rfind(')');
  return end != std::string::npos && text.substr(end + 2, 1) != "Z";
}

bool eventually(const std::function<bool()>& holds) {
  for (const Deadline until = Deadline::after_ms(kPatienceMs); !until.expired() && !holds();)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  return holds();
}

// The program of a case, in a process of its own.
class Program {
 public:
  Program(Case story, std::string folder) : story_(std::move(story)), folder_(std::move(folder)) {}

  Result<std::string> run(Json& report) {
    ControllerOptions options;
    options.folder = folder_ + "/run";
    options.run = "r";
    options.sync = LogSync::kProcess;
    options.watermark_interval_ms = 20;
    options.watermark_cost = 1;
    options.durable_interval_ms = 1'000'000;  // only when the case says so
    options.lease_ms = story_.lease_ms;
    options.heartbeat_timeout_ms = 1500;  // a busy machine is no loss
    if (story_.unkillable) options.launcher = std::make_shared<OutOfReach>();
    ASSIGN_OR_RETURN(const auto controller, Controller::open(options));
    controller_ = controller.get();
    MeshOptions of_mesh;
    if (!story_.self.empty()) of_mesh.env["FLYWHEEL_TEST_HARM"] = story_.self + " " + folder_ + "/harmed";
    ASSIGN_OR_RETURN(mesh_, controller->mesh("m", story_.axes, of_mesh));
    note_pids();
    auto result = steps();
    note_pids();
    for (const auto& [pid, rank] : stopped_)
      if (!eventually([&, p = pid] { return !alive(p); }))
        return make_error(ErrorCode::kInvalid, "{} still runs", pid);
    report["recoveries"] = mesh_.status().recoveries;
    for (const auto& failure : controller->failures()) report["failures"].push_back(failure.to_string());
    if (result.ok()) RETURN_IF_ERROR(controller->close(Deadline::after_ms(kPatienceMs)));
    return result;
  }

 private:
  static constexpr size_t kAhead = 4;
  void note_pids() const {
    std::ofstream file(folder_ + "/pids", std::ios::app);
    for (const int64_t pid : mesh_.status().pids) file << pid << "\n";
  }
  Result<std::string> steps() {
    std::vector<Future> calls;
    const auto seen = [&](size_t i) -> Result<void> {
      RETURN_IF_ERROR(calls[i].wait(Deadline::after_ms(kPatienceMs)));
      for (const Harm& harm : story_.harms)
        if (harm.after == calls[i].sequence()) RETURN_IF_ERROR(harm_now(harm));
      return {};
    };
    for (int step = -1; step < story_.steps; ++step) {
      calls.push_back(mesh_.call(step < 0        ? "test.create"
                                 : step % 5 == 4 ? "test.sum"
                                                 : "test.step",
                                 "sleep 1", {.cursor = step}));
      if (calls.size() > kAhead) RETURN_IF_ERROR(seen(calls.size() - 1 - kAhead));
    }
    for (size_t i = calls.size() - std::min(kAhead, calls.size()); i < calls.size(); ++i)
      RETURN_IF_ERROR(seen(i));
    Sha256 sha;
    for (const Future& call : calls) {
      ASSIGN_OR_RETURN(const std::vector<uint64_t> digests, call.digests());
      for (const uint64_t digest : digests) sha.update(std::to_string(digest));
    }
    return sha.hex();
  }

  Result<void> harm_now(const Harm& harm) {
    // Once in the run, not once in each life.
    const std::string mark = fmt::format("{}/done-{}-{}", folder_, harm.after, static_cast<int>(harm.what));
    if (path_exists(mark)) return {};
    RETURN_IF_ERROR(write_file(mark, ""));
    note_pids();
    const auto status = mesh_.status();
    const auto each = [&](int signal) {
      for (const int rank : harm.ranks)
        ::kill(static_cast<pid_t>(status.pids.at(static_cast<size_t>(rank))), signal);
    };
    switch (harm.what) {
      case Harm::What::kKill:
        each(SIGKILL);
        break;
      case Harm::What::kStop:
        each(SIGSTOP);
        if (harm.for_ms > 0) {
          std::this_thread::sleep_for(std::chrono::milliseconds(harm.for_ms));
          each(SIGCONT);
        } else if (story_.unkillable) {
          for (const int rank : harm.ranks) stopped_[status.pids.at(static_cast<size_t>(rank))] = rank;
        }
        break;
      case Harm::What::kContinue:
        for (const auto& [pid, rank] : stopped_) ::kill(static_cast<pid_t>(pid), SIGCONT);
        break;
      case Harm::What::kController:
        ::raise(SIGKILL);
        break;
      case Harm::What::kStopController: {
        const pid_t self = ::getpid();
        const pid_t other = ::fork();
        if (other == 0) {
          std::this_thread::sleep_for(std::chrono::milliseconds(harm.for_ms));
          ::kill(self, SIGCONT);
          ::_exit(0);
        }
        ::raise(SIGSTOP);
        ::waitpid(other, nullptr, 0);
        break;
      }
      case Harm::What::kDamage:
        return damage(harm);
      case Harm::What::kWatermark:
        if (!eventually([&] { return mesh_.status().watermark >= harm.after; }))
          return make_error(ErrorCode::kDeadline, "no watermark at {}", harm.after);
        break;
      case Harm::What::kCheckpoint:
        return controller_->checkpoint(Deadline::after_ms(kPatienceMs));
    }
    return {};
  }

  Result<void> damage(const Harm& harm) const {
    const std::string watermarks = folder_ + "/run/watermarks/m";
    ASSIGN_OR_RETURN(std::vector<std::string> names, list_folder(watermarks));
    std::ranges::sort(names, {}, [](const std::string& name) { return std::stoll(name); });
    if (!harm.every) names.erase(names.begin(), names.end() - 1);
    for (const std::string& name : names) {
      const std::string path = fmt::format("{}/{}/{}", watermarks, name, harm.piece);
      ASSIGN_OR_RETURN(std::string bytes, read_file(path));
      bytes.back() ^= 4;
      RETURN_IF_ERROR(write_file(path, bytes));
    }
    return {};
  }

  const Case story_;
  const std::string folder_;
  Controller* controller_ = nullptr;
  Mesh mesh_;
  std::map<int64_t, int> stopped_;
};

std::string undisturbed(const Case& story) {
  static std::map<std::string, std::string> known;
  Case calm;
  calm.axes = story.axes, calm.steps = story.steps;
  std::string& hash = known[Shape(story.axes).to_string() + " " + std::to_string(story.steps)];
  if (!hash.empty()) return hash;
  const TempFolder folder;
  Json ignored;
  return hash = Program(calm, folder.path()).run(ignored).value();
}

// What nobody may see between two lives of a controller: bytes of the log's end missing, a bit of it changed.
void damage_log(const Case& story, const std::string& path) {
  std::string bytes = read_file(path).value();
  if (story.cut_bytes > 0) bytes.resize(bytes.size() - static_cast<size_t>(story.cut_bytes));
  if (story.flip) bytes[bytes.size() / 2] ^= 4;
  write_file(path, bytes).value();
}

class RecoveryCase : public testing::TestWithParam<std::string> {};

TEST_P(RecoveryCase, GoesAsTheFileSays) {
  const std::string path = FLYWHEEL_ROOM_DIR "/testdata/recovery/" + GetParam() + ".txt";
  const Case story = parse_case(path);
  ASSERT_FALSE(story.expected.empty()) << path;
  const TempFolder folder;
  write_file(folder / "case", path).value();
  int lives = 0;
  for (bool over = false; !over && lives < 5; ++lives) {
    Process program = Process::start({"/proc/self/exe", "case", folder.path()}).value();
    const auto status = program.wait(Deadline::after_ms(60'000));
    ASSERT_TRUE(status.ok()) << "the program hangs";
    over = status->signal != SIGKILL;
    if (!over) damage_log(story, folder / "run/commands.log");
  }
  const Json report = parse_json(read_file(folder / "report").value()).value();
  const std::string told = report.dump();
  for (const std::string& line : story.expected) {
    const auto words = words_of(line);
    const std::string rest = words.size() > 1 ? line.substr(line.find(words[1], words[0].size())) : "";
    if (line == "same result") {
      EXPECT_EQ(report.value("hash", ""), undisturbed(story)) << told;
    } else if (words[0] == "recoveries") {
      EXPECT_EQ(report.value("recoveries", -1), std::stoi(words[1])) << told;
    } else if (words[0] == "lives") {
      EXPECT_EQ(lives, std::stoi(words[1])) << told;
    } else if (words[0] == "failure" || words[0] == "error") {
      const std::string where = words[0] == "error" ? report.value("error", "") : report["failures"].dump();
      EXPECT_NE(where.find(rest), std::string::npos) << line << "\n" << told;
    } else if (words[0] == "log") {
      const auto lines = log_lines(read_log(folder / "run/commands.log").value()).value();
      EXPECT_NE(log_table(lines).find(rest), std::string::npos) << line << "\n" << log_table(lines);
    } else {
      FAIL() << path << ": what is \"" << line << "\"?";
    }
  }
  std::ifstream pids(folder / "pids");
  for (int64_t pid = 0; pids >> pid;)
    EXPECT_TRUE(pid == 0 || eventually([&] { return !alive(pid); })) << "worker " << pid << " is left";
}

std::vector<std::string> cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(FLYWHEEL_ROOM_DIR "/testdata/recovery"))
    names.push_back(entry.path().stem());
  std::sort(names.begin(), names.end());
  return names;
}

INSTANTIATE_TEST_SUITE_P(Files, RecoveryCase, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param; });

}  // namespace

int case_main(const std::string& folder) {
  Json report = {{"failures", Json::array()}};
  const auto hash = Program(parse_case(read_file(folder + "/case").value()), folder).run(report);
  report[hash.ok() ? "hash" : "error"] = hash.ok() ? *hash : hash.error().to_string();
  return write_file(folder + "/report", report.dump()).ok() ? 0 : 1;
}

}  // namespace flywheel::runtime
