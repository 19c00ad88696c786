// flywheel log show: the command log of a run, for people and for machines.
#include <algorithm>
#include <cstdio>
#include <span>

#include "base/env.h"
#include "base/file.h"
#include "base/json.h"
#include "cli.h"
#include "runtime/log_table.h"
#include "subcommands.h"
#include "table.h"

namespace flywheel::cli {
namespace {

struct Options {
  std::string run;
  int64_t last = 0;
  bool json = false;
};

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

// What an operation took or gave, whole: JSON as it is, other text as text.
Json value_json(const std::string& bytes) {
  if (bytes.starts_with('{') || bytes.starts_with('[')) {
    if (auto json = parse_json(bytes); json.ok()) return std::move(json).value();
  }
  return bytes;
}

Json line_json(const runtime::LogLine& line) {
  Json out = {{"offset", line.offset}, {"epoch", line.epoch}, {"mesh", line.mesh}, {"what", line.what}};
  if (line.sequence == 0) return out;
  out["sequence"] = line.sequence;
  out["ranks"] = line.slice;
  out["arguments"] = value_json(line.args);
  out["cursor"] = line.cursor;
  out["uses"] = line.uses;
  out["results"] = Json::array();
  for (const runtime::Outcome& outcome : line.outcomes) {
    Json one = {{"size_bytes", outcome.size_bytes}, {"digest", fmt::format("{:016x}", outcome.digest)}};
    if (outcome.failed) {
      one = {{"error", outcome.value}, {"code", error_code_name(outcome.code)}};
    } else if (outcome.has_value) {
      one["value"] = value_json(outcome.value);
    }
    out["results"].push_back(std::move(one));
  }
  return out;
}

int show(const Options& options) {
  const std::string path = find_log(options.run);
  const auto content = runtime::read_log(path);
  auto lines =
      content.ok() ? runtime::log_lines(*content) : Result<std::vector<runtime::LogLine>>(content.error());
  if (!lines.ok()) {
    std::fprintf(stderr, "%s\n", lines.error().to_string().c_str());
    return 1;
  }
  const size_t last =
      options.last > 0 ? std::min(static_cast<size_t>(options.last), lines->size()) : lines->size();
  if (options.json) {
    Json out = Json::array();
    for (const auto& line : std::span(*lines).last(last)) out.push_back(line_json(line));
    print_json(out);
  } else {
    std::printf("%s", runtime::log_table(*lines, last).c_str());
  }
  if (content->torn_bytes > 0) {
    std::fprintf(stderr, "%s ends with %zu bytes of an unfinished write, which the next start cuts off\n",
                 path.c_str(), static_cast<size_t>(content->torn_bytes));
  }
  return 0;
}

int verb_log(const std::vector<std::string>& args) {
  CLI::App app{
      "Look at the command log of a run: what its controller asked of the workers, and what came of it."};
  app.footer("  flywheel log show tiny-1\n  flywheel log show tiny-1 --last 20\n");
  Options options;
  Subcommands<Options> subcommands(app, options);
  CLI::App* command = subcommands.add("show", "Print the log as a table", show,
                                      "  flywheel log show tiny-1                  a run by its id\n"
                                      "  flywheel log show tiny-1 --last 20\n"
                                      "  flywheel log show ~/.flywheel/runs/tiny-1 its folder\n");
  command->add_option("run", options.run, "Id of the run, its folder, or a log file")->required();
  command->add_option("--last", options.last, "Only the last N lines; the sum below is over all")
      ->check(at_least(1));
  if (auto exit = parse(app, "log", args)) return *exit;
  return subcommands.run();
}

REGISTER_VERB(log, "The command log of a run: show", verb_log);

}  // namespace
}  // namespace flywheel::cli
