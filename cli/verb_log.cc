// flywheel log show: the command log of a run, for people and for machines.
#include <cstdio>

#include "base/env.h"
#include "base/file.h"
#include "base/json.h"
#include "cli.h"
#include "runtime/log_table.h"

namespace flywheel::cli {
namespace {

// A run's name, its folder, or the log file itself.
std::string find_log(const std::string& run) {
  const std::string file = "commands.log";
  for (const std::string& path : {env::home() + "/runs/" + run + "/" + file, run + "/" + file, run}) {
    if (path_exists(path) && !path_exists(path + "/.")) return path;
  }
  throw UserError("flywheel log show",
                  "no command log of a run named " + run + " under " + env::home() + "/runs",
                  "`flywheel runs list` shows the runs; a folder or a file will do too");
}

int verb_log(const std::vector<std::string>& args) {
  CLI::App app{
      "Look at the command log of a run: what its controller asked of the workers, and what came of it."};
  app.require_subcommand(1);
  std::string run;
  int64_t last = 0;
  bool json = false;
  CLI::App* show = app.add_subcommand("show", "Print the log as a table");
  show->add_option("RUN", run, "Name of the run, its folder, or a log file")->required();
  show->add_option("--last", last, "Only the last N lines")->check(CLI::PositiveNumber);
  show->add_flag("--json", json, "One JSON array on stdout");
  app.footer("  flywheel log show tiny-7\n  flywheel log show tiny-7 --last 20\n");
  if (auto exit = parse(app, "log", args)) return *exit;

  const std::string path = find_log(run);
  const auto content = runtime::read_log(path);
  auto lines =
      content.ok() ? runtime::log_lines(*content) : Result<std::vector<runtime::LogLine>>(content.error());
  if (!lines.ok()) {
    std::fprintf(stderr, "%s\n", lines.error().to_string().c_str());
    return 1;
  }
  if (last > 0 && std::ssize(*lines) > last) lines->erase(lines->begin(), lines->end() - last);
  if (json) {
    Json out = Json::array();
    for (const auto& line : *lines) {
      out.push_back({{"offset", line.offset},
                     {"sequence", line.sequence},
                     {"epoch", line.epoch},
                     {"mesh", line.mesh},
                     {"what", line.what},
                     {"ranks", line.slice},
                     {"arguments", line.arguments},
                     {"result", line.result}});
    }
    std::printf("%s\n", out.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    std::printf("%s", runtime::log_table(*lines).c_str());
  }
  if (content->torn_bytes > 0) {
    std::fprintf(stderr, "%s ends with %zu bytes of an unfinished write, which the next start cuts off\n",
                 path.c_str(), static_cast<size_t>(content->torn_bytes));
  }
  return 0;
}

REGISTER_VERB(log, "The command log of a run: show", verb_log);

}  // namespace
}  // namespace flywheel::cli
