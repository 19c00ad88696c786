// flywheel log: the command log of a run, and what was found when a command hung; for people and for
// machines.
#include <algorithm>
#include <cstdio>
#include <span>

#include "base/env.h"
#include "base/file.h"
#include "base/json.h"
#include "cli.h"
#include "runtime/hang.h"
#include "runtime/log_table.h"
#include "subcommands.h"
#include "table.h"

namespace flywheel::cli {
namespace {

struct Options {
  std::string run;
  int64_t last = 0;
  bool json = false, all_stacks = false, wide = false;
};

// A run's name, its folder, or the log file itself.
std::string find_log(const std::string& verb, const std::string& run) {
  const std::string file = "commands.log";
  for (const std::string& path : {env::home() + "/runs/" + run + "/" + file, run + "/" + file, run}) {
    if (path_exists(path) && !path_exists(path + "/.")) return path;
  }
  throw UserError(verb, "no command log of a run named " + run + " under " + env::home() + "/runs",
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
  out["generator_key"] = line.generator_key;
  out["deadline_ms"] = line.deadline_ms;
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
  const std::string path = find_log("flywheel log show", options.run);
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
    const auto columns = options.wide ? runtime::LogColumns::kAll : runtime::LogColumns::kUsual;
    std::printf("%s", runtime::log_table(*lines, last, columns).c_str());
  }
  if (content->torn_bytes > 0) {
    std::fprintf(stderr, "%s ends with %zu bytes of an unfinished write, which the next start cuts off\n",
                 path.c_str(), static_cast<size_t>(content->torn_bytes));
  }
  return 0;
}

// The newest finding of a run's, or a finding's own file; and how many the run has.
std::pair<std::string, size_t> find_hang(const std::string& run) {
  if (run.ends_with(".hang")) return {run, 1};
  for (const std::string& folder : {env::home() + "/runs/" + run, run}) {
    const std::vector<std::string> files = runtime::hang_files(folder);
    if (!files.empty()) return {files.back(), files.size()};
  }
  // This says what is wrong when there is no such run.
  if (find_log("flywheel log hang", run) == run)
    throw UserError("flywheel log hang", run + " is a file, and no finding: those end with .hang",
                    "give a run's name, its folder, or a finding in the folder's hangs/");
  return {};
}

Json event_json(const runtime::FlightEvent& event) {
  Json out = {{"what", runtime::event_text(event)},
              {"name", event.name},
              {"number", event.number},
              {"epoch", event.epoch},
              {"begun_us_ago", event.begun_us}};
  out["ended_us_ago"] = event.ended ? Json(event.ended_us) : Json();
  out["activity"] = event.activity == runtime::Activity::kCommand ? "command" : "collective";
  return out;
}

Json rank_json(const runtime::RankReport& report) {
  Json out = {{"rank", report.rank},         {"host", report.host},       {"pid", report.pid},
              {"answered", report.answered}, {"stopped", report.stopped}, {"silent_ms", report.silent_ms},
              {"events", Json::array()},     {"threads", Json::array()}};
  for (const runtime::FlightEvent& event : report.events) out["events"].push_back(event_json(event));
  for (const ThreadStack& thread : report.threads) {
    out["threads"].push_back(
        {{"id", thread.id}, {"name", thread.name}, {"state", thread.state}, {"frames", thread.frames}});
  }
  return out;
}

Json hang_json(const runtime::Hang& hang) {
  Json out = {{"run", hang.run},           {"mesh", hang.mesh},
              {"unix_ms", hang.unix_ms},   {"epoch", hang.epoch},
              {"sequence", hang.sequence}, {"operation", hang.operation},
              {"age_ms", hang.age_ms},     {"summary", hang.finding.summary}};
  out["kind"] = runtime::hang_kind_name(hang.finding.kind);
  out["ranks"] = hang.finding.ranks;
  out["reports"] = Json::array();
  for (const runtime::RankReport& report : hang.reports) out["reports"].push_back(rank_json(report));
  return out;
}

int show_hang(const Options& options) {
  const auto [path, count] = find_hang(options.run);
  if (path.empty()) {
    if (options.json) print_json(Json());
    std::fprintf(stderr, "nothing hung in %s\n", options.run.c_str());
    return 0;
  }
  const auto hang = runtime::read_hang(path);
  if (!hang.ok()) throw UserError("flywheel log hang", hang.error());
  if (options.json) {
    print_json(hang_json(*hang));
  } else {
    std::printf("%s  %s", format_time(hang->unix_ms).c_str(),
                runtime::hang_text(*hang, options.all_stacks).c_str());
  }
  if (count > 1) {
    std::fprintf(stderr, "the newest of %zu; the others are beside %s and can be named instead of the run\n",
                 count, path.c_str());
  }
  return 0;
}

int verb_log(const std::vector<std::string>& args) {
  App app{"Look at the command log of a run: what its controller asked of the workers, and what came of it."};
  app.footer(
      "  flywheel log show tiny-1\n  flywheel log show tiny-1 --last 20\n  flywheel log hang tiny-1\n");
  Options options;
  Subcommands<Options> subcommands(app, options);
  CLI::App* command =
      subcommands.add("show", "Print the log as a table", show,
                      "  flywheel log show tiny-1                  a run by its id\n"
                      "  flywheel log show tiny-1 --last 20\n"
                      "  flywheel log show tiny-1 --wide           also keys of random numbers, deadlines\n"
                      "  flywheel log show ~/.flywheel/runs/tiny-1 its folder\n");
  command->add_option("run", options.run, "Id of the run, its folder, or a log file")->required();
  command->add_option("--last", options.last, "Only the last N lines; the sum below is over all")
      ->check(at_least(1));
  command->add_flag("--wide,-l", options.wide,
                    "Also columns for place in the data, objects used, key of random numbers, deadline");
  command =
      subcommands.add("hang", "Who held up a command that did not end, and in what, with stacks", show_hang,
                      "  flywheel log hang tiny-1                  the newest finding\n"
                      "  flywheel log hang tiny-1 --all-stacks\n"
                      "  flywheel log hang tiny-1 --json\n");
  command->add_option("run", options.run, "Id of the run, its folder, or one finding (hangs/*.hang there)")
      ->required();
  command->add_flag("--all-stacks", options.all_stacks, "Stacks of all ranks, not only of those to blame");
  if (auto exit = parse(app, "log", args)) return *exit;
  return subcommands.run();
}

REGISTER_VERB(log, "The command log of a run: show, hang", verb_log);

}  // namespace
}  // namespace flywheel::cli
