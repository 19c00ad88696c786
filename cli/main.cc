// flywheel VERB ...: finds the verb, sets up logging, and turns what flies out into a line and an exit code.
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "base/config.h"
#include "base/cpu.h"
#include "base/env.h"
#include "base/filesystem.h"
#include "base/log.h"
#include "base/posix.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "cli.h"
#include "utf8.h"

namespace flywheel::cli {
namespace {

constexpr const char* kVersion = "0.1.0";

void print_help() {
  std::printf(
      "Flywheel: raw data in, a served model that keeps improving out.\n\n"
      "  flywheel VERB [options]        flywheel VERB --help shows examples\n\n");
  for (const auto& verb : verbs()) {
    if (!verb.hidden) std::printf("  %-10s %s\n", verb.name.c_str(), verb.summary.c_str());
  }
  std::printf(
      "\nBefore or after every verb:\n"
      "  --home FOLDER      where runs, artifacts and models lie (default ~/.flywheel, or FLYWHEEL_HOME)\n"
      "  --threads N        cores to compute on (default: all)\n"
      "  --log-level LEVEL  trace, debug, info, warn, error, off (default info, or FLYWHEEL_LOG)\n"
      "\nEnvironment: FLYWHEEL_STORE, a postgres:// address, keeps the names of runs and artifacts there "
      "instead\n"
      "of in a file of the home; FLYWHEEL_ISA (baseline, avx2, avx512) holds kernels back; HF_TOKEN for "
      "models\n"
      "that are not public; NO_COLOR.\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage.\n");
}

// Takes `--name VALUE` or `--name=VALUE` out of the arguments.
std::string take_option(std::vector<std::string>& args, const std::string& name) {
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i] == "--") break;
    if (args[i].starts_with(name + "=")) {
      std::string value = args[i].substr(name.size() + 1);
      if (value.empty()) throw UserError(name, "needs a value");
      args.erase(args.begin() + static_cast<std::ptrdiff_t>(i));
      return value;
    }
    if (args[i] == name) {
      if (i + 1 == args.size() || args[i + 1].empty()) throw UserError(name, "needs a value");
      std::string value = args[i + 1];
      args.erase(args.begin() + static_cast<std::ptrdiff_t>(i),
                 args.begin() + static_cast<std::ptrdiff_t>(i) + 2);
      return value;
    }
  }
  return "";
}

// Options of every verb, wherever they stand. The environment is how the first two reach worker processes
// too.
void take_common_options(std::vector<std::string>& args) {
  const std::string given = take_option(args, "--home");
  if (!given.empty()) setenv("FLYWHEEL_HOME", given.c_str(), 1);  // NOLINT(concurrency-mt-unsafe): no threads
  if (!env::get("FLYWHEEL_HOME").empty()) {
    const std::string home = env::home();  // absolute, for processes that stand in another folder
    // Paths below it go into command logs and reports, which are JSON.
    for (const std::string& path : {env::get("FLYWHEEL_HOME"), home})
      check_utf8(given.empty() ? "FLYWHEEL_HOME" : "--home", path, "name a folder whose path is UTF-8");
    setenv("FLYWHEEL_HOME", home.c_str(), 1);  // NOLINT(concurrency-mt-unsafe)
  }
  if (const std::string threads = take_option(args, "--threads"); !threads.empty()) {
    char* end = nullptr;
    const long count = std::strtol(threads.c_str(), &end, 10);
    if (*end != '\0' || count < 1 || count > 4096)
      throw UserError("--threads", "must be 1 to 4096, not " + threads);
    set_compute_threads(static_cast<int>(count));
  }
  init_logging(take_option(args, "--log-level"));
  (void)isa();  // refuses what FLYWHEEL_ISA cannot be, before anything begins
}

int run(std::vector<std::string> args) {
  std::sort(verbs().begin(), verbs().end(), [](const Verb& a, const Verb& b) { return a.name < b.name; });
  take_common_options(args);
  if (args.size() == 2 && args[0] == "help") args = {args[1], "--help"};
  if (args.empty() || args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    print_help();
    return args.empty() ? 2 : 0;
  }
  if (args[0] == "--version") {
    std::printf("flywheel %s\n", kVersion);
    return 0;
  }
  const std::string name = args[0];
  args.erase(args.begin());
  std::vector<std::string> known;
  for (const auto& verb : verbs()) {
    if (verb.name == name) return verb.run(args);
    if (!verb.hidden) known.push_back(verb.name);
  }
  if (name.starts_with("-")) {
    const std::string near =
        nearest_name(name, {"--home", "--threads", "--log-level", "--version", "--help"});
    throw UserError("flywheel " + name, "no such option before the verb",
                    near.empty() ? "flywheel --help lists them" : "did you mean " + near + "?");
  }
  const std::string near = nearest_name(name, known);
  throw UserError("flywheel " + name, "no such verb",
                  near.empty() ? "flywheel --help lists them" : "did you mean flywheel " + near + "?");
}

}  // namespace
}  // namespace flywheel::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away is an error from write, not our end
  const flywheel::ObjectStoreSession object_stores;
  try {
    const int code = flywheel::cli::run(std::vector<std::string>(argv + 1, argv + argc));
    const bool written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
    if (written || errno == EPIPE) return code;  // `| head` has read enough
    throw flywheel::UserError("flywheel", flywheel::system_error("cannot write to", "standard output"));
  } catch (const flywheel::UserError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return flywheel::is_failure(error.code()) ? 1 : 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "flywheel: unexpected: %s\n", error.what());
    return 1;
  }
}
