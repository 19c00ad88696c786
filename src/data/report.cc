#include "data/report.h"

#include <algorithm>

#include "base/progress.h"

namespace flywheel::data {
namespace {

constexpr int64_t kVersion = 1;  // docs/formats/dataset.md

// "on: a, b 3; off: c" in lines of a readable length.
std::string rules_text(const std::vector<RuleSetting>& rules, bool on) {
  std::string out, line = on ? "rules on: " : "rules off:";
  for (const RuleSetting& rule : rules) {
    if (rule.on != on) continue;
    const std::string word = " " + rule.name + (rule.value.empty() || !on ? "" : " " + rule.value) + ",";
    if (line.size() + word.size() > 110) {
      out += line + "\n";
      line = "          ";
    }
    line += word;
  }
  if (line.ends_with(',')) line.pop_back();
  return out + line + "\n";
}

}  // namespace

OrderedJson to_json(const StageReport& stage) {
  OrderedJson json = {{"name", stage.name},
                      {"documents_in", stage.documents_in},
                      {"documents_out", stage.documents_out},
                      {"bytes_in", stage.bytes_in},
                      {"bytes_out", stage.bytes_out},
                      {"quarantined", stage.quarantined},
                      {"seconds", stage.seconds},
                      {"reused", stage.reused},
                      {"dropped", OrderedJson::object()},
                      {"counts", OrderedJson::object()}};
  for (const auto& [rule, count] : stage.dropped) {
    json["dropped"][rule] = {{"documents", count.documents}, {"bytes", count.bytes}};
  }
  for (const auto& [what, n] : stage.counts) json["counts"][what] = n;
  return json;
}

OrderedJson to_json(const PrepareReport& report) {
  OrderedJson json = {{"version", kVersion},
                      {"files", report.files},
                      {"bytes", report.bytes},
                      {"seconds", report.seconds},
                      {"skipped", OrderedJson::object()},
                      {"stages", OrderedJson::array()},
                      {"artifacts", OrderedJson::object()}};
  for (const auto& [why, n] : report.skipped) json["skipped"][why] = n;
  for (const StageReport& stage : report.stages) json["stages"].push_back(to_json(stage));
  for (const auto& [kind, ref] : report.artifacts) json["artifacts"][kind] = ref;
  json["rules"] = OrderedJson::array();
  for (const RuleSetting& rule : report.rules) {
    json["rules"].push_back({{"name", rule.name}, {"on", rule.on}, {"value", rule.value}});
  }
  return json;
}

Result<StageReport> stage_from_json(const OrderedJson& json) {
  try {
    StageReport stage;
    stage.name = json.at("name").get<std::string>();
    stage.documents_in = json.at("documents_in").get<int64_t>();
    stage.documents_out = json.at("documents_out").get<int64_t>();
    stage.bytes_in = json.at("bytes_in").get<int64_t>();
    stage.bytes_out = json.at("bytes_out").get<int64_t>();
    stage.quarantined = json.at("quarantined").get<int64_t>();
    stage.seconds = json.at("seconds").get<double>();
    stage.reused = json.at("reused").get<bool>();
    for (const auto& [rule, count] : json.at("dropped").items()) {
      stage.dropped[rule] = {count.at("documents").get<int64_t>(), count.at("bytes").get<int64_t>()};
    }
    for (const auto& [what, n] : json.at("counts").items()) stage.counts[what] = n.get<int64_t>();
    return stage;
  } catch (const OrderedJson::exception& error) {
    return make_error(ErrorCode::kCorrupt, "not a stage's report: {}", error.what());
  }
}

Result<PrepareReport> report_from_json(const OrderedJson& json) {
  try {
    if (const int64_t version = json.value("version", int64_t{0}); version != kVersion) {
      return make_error(ErrorCode::kInvalid,
                        "a report of version {}; this program reads {}: run prepare again", version,
                        kVersion);
    }
    PrepareReport report;
    report.files = json.at("files").get<int64_t>();
    report.bytes = json.at("bytes").get<int64_t>();
    report.seconds = json.at("seconds").get<double>();
    for (const auto& [why, n] : json.at("skipped").items()) report.skipped[why] = n.get<int64_t>();
    for (const auto& stage : json.at("stages")) {
      ASSIGN_OR_RETURN(StageReport parsed, stage_from_json(stage));
      report.stages.push_back(std::move(parsed));
    }
    for (const auto& [kind, ref] : json.at("artifacts").items())
      report.artifacts[kind] = ref.get<std::string>();
    for (const auto& rule : json.at("rules")) {
      report.rules.push_back({rule.at("name").get<std::string>(), rule.at("on").get<bool>(),
                              rule.at("value").get<std::string>()});
    }
    return report;
  } catch (const OrderedJson::exception& error) {
    return make_error(ErrorCode::kCorrupt, "not a report: {}", error.what());
  }
}

std::string to_text(const PrepareReport& report) {
  std::string out =
      fmt::format("{} files, {}", human_count(report.files), human_bytes(static_cast<double>(report.bytes)));
  std::string skipped;
  for (const auto& [why, n] : report.skipped)
    skipped += fmt::format("{}{} {}", skipped.empty() ? "" : ", ", n, why);
  if (!skipped.empty()) out += fmt::format(" (not read: {})", skipped);
  out +=
      "\n\n| stage     | documents in |     kept |  dropped | quarantined |    text out |   seconds |   MB/s "
      "|\n";
  out +=
      "|-----------|-------------:|---------:|---------:|------------:|------------:|----------:|-------:|\n";
  for (const StageReport& stage : report.stages) {
    int64_t dropped = 0;
    for (const auto& [rule, count] : stage.dropped) dropped += count.documents;
    const double rate = stage.seconds > 0 ? static_cast<double>(stage.bytes_in) / 1e6 / stage.seconds : 0;
    out +=
        fmt::format("| {:<9} | {:>12} | {:>8} | {:>8} | {:>11} | {:>11} | {:>9} | {:>6} |\n", stage.name,
                    human_count(stage.documents_in), human_count(stage.documents_out), human_count(dropped),
                    human_count(stage.quarantined), human_bytes(static_cast<double>(stage.bytes_out)),
                    stage.reused ? "reused" : fmt::format("{:.2f}", stage.seconds),
                    stage.reused ? "-" : fmt::format("{:.1f}", rate));
  }
  out += "\n| stage     | dropped because                               | documents |        text |\n";
  out += "|-----------|-----------------------------------------------|----------:|------------:|\n";
  for (const StageReport& stage : report.stages) {
    std::vector<std::pair<std::string, StageReport::Count>> rules(stage.dropped.begin(), stage.dropped.end());
    std::stable_sort(rules.begin(), rules.end(),
                     [](const auto& a, const auto& b) { return a.second.documents > b.second.documents; });
    for (const auto& [rule, count] : rules) {
      out += fmt::format("| {:<9} | {:<45} | {:>9} | {:>11} |\n", stage.name, rule,
                         human_count(count.documents), human_bytes(static_cast<double>(count.bytes)));
    }
  }
  std::string counts;
  for (const StageReport& stage : report.stages) {
    for (const auto& [what, n] : stage.counts)
      counts += fmt::format("{}: {}: {}\n", stage.name, what, human_count(n));
  }
  if (!counts.empty()) out += "\n" + counts;
  if (!report.rules.empty())
    out += "\n" + rules_text(report.rules, true) + rules_text(report.rules, false) + "\n";
  for (const auto& [kind, ref] : report.artifacts) out += fmt::format("{}: {}\n", kind, ref);
  return out;
}

}  // namespace flywheel::data
