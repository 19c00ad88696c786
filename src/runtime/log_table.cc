#include "runtime/log_table.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <map>
#include <set>

#include "base/json.h"
#include "base/progress.h"
#include "runtime/history.h"

namespace flywheel::runtime {
namespace {

constexpr const char* kNoResult = "no result";

constexpr size_t kPreview = 56;  // of arguments and results

// Numbers of a JSON object as people write them, its other parts as far as they are short: "loss 5.998, lr
// 0.002".
std::string fields_text(const Json& object) {
  std::string text;
  for (const auto& [key, value] : object.items()) {
    const std::string shown = value.is_number_float() ? fmt::format("{:.4g}", value.get<double>())
                              : value.is_string()     ? value.get<std::string>()
                                                      : value.dump();
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", key, shown);
  }
  return text;
}

// JSON as fields, text as it is, other bytes as dots; long ones are cut, with their size.
std::string preview(const std::string& bytes) {
  if (bytes.empty()) return "";
  std::string text = bytes;
  if (bytes.starts_with('{')) {
    if (const auto json = parse_json(bytes); json.ok()) text = fields_text(*json);
  }
  const bool cut = text.size() > kPreview;
  text = text.substr(0, kPreview);
  for (char& c : text)
    if (c < ' ' || c >= 127) c = c == '\n' ? ' ' : '.';
  return cut ? fmt::format("{}... ({})", text, human_bytes(static_cast<double>(bytes.size()))) : text;
}

std::string outcome_text(const Outcome& outcome) {
  if (outcome.failed) return fmt::format("failed ({}): {}", error_code_name(outcome.code), outcome.value);
  if (outcome.size_bytes == 0) return "ok";
  std::string text = fmt::format("{:08x}", outcome.digest >> 32);
  if (outcome.has_value) text += " " + preview(outcome.value);
  return text;
}

// Equal outcomes of all ranks are said once.
std::string result_text(const std::vector<Outcome>& outcomes) {
  std::vector<std::string> texts;
  for (const auto& outcome : outcomes) texts.push_back(outcome_text(outcome));
  if (texts.empty()) return "";
  if (std::all_of(texts.begin(), texts.end(), [&](const auto& text) { return text == texts[0]; }))
    return texts[0];
  std::string all;
  for (const auto& text : texts) all += (all.empty() ? "" : " | ") + text;
  return all;
}

std::string uses_text(const std::vector<uint64_t>& uses) {
  std::string text;
  for (const uint64_t used : uses) text += fmt::format("{}#{}", text.empty() ? "" : ", ", used);
  return text;
}

std::string arguments_text(const LogLine& command, bool has_cursor) {
  std::string text = preview(command.args);
  const auto add = [&](const std::string& more) { text += (text.empty() ? "" : ", ") + more; };
  if (has_cursor) add(fmt::format("cursor {}", command.cursor));
  if (!command.uses.empty()) add(uses_text(command.uses));
  return text;
}

// " at 2026-11-21 06:30:44 UTC"; nothing for a log without the time.
std::string date_text(int64_t unix_ms) {
  if (unix_ms <= 0) return "";
  const auto seconds = static_cast<std::time_t>(unix_ms / 1000);
  std::tm date{};
  ::gmtime_r(&seconds, &date);
  return fmt::format(" at {:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC", date.tm_year + 1900, date.tm_mon + 1,
                     date.tm_mday, date.tm_hour, date.tm_min, date.tm_sec);
}

// What a person asks first: how far it is, whether it was hurt, whether it ended.
std::string summary(std::span<const LogLine> lines) {
  size_t commands = 0, open = 0, failed = 0, epochs = 0, meshes = 0, watermarks = 0, lives = 0;
  bool ended = false;
  for (const auto& line : lines) {
    commands += line.kind == RecordType::kCommand;
    open += line.kind == RecordType::kCommand && line.result == kNoResult;
    failed += line.result.starts_with("failed");
    epochs += line.kind == RecordType::kEpoch;
    meshes += line.kind == RecordType::kMesh;
    watermarks += line.kind == RecordType::kWatermark;
    lives += line.kind == RecordType::kRun;
    ended = line.kind == RecordType::kClose;
  }
  const auto some = [](size_t n, const char* what) {
    return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
  };
  std::string text = some(commands, "command");
  if (open > 0) text += fmt::format(" ({} without a result)", open);
  if (failed > 0) text += fmt::format(", {} failed", failed);
  text += ", " + some(watermarks, "watermark");
  if (lives > 1) text += ", taken up again " + some(lives - 1, "time");
  // Each start of each mesh opens an epoch; what is more are recoveries.
  const size_t recoveries = epochs - std::min(epochs, meshes * lives);
  text += fmt::format(", {} recover{}", recoveries, recoveries == 1 ? "y" : "ies");
  return text + (ended ? "; the program ended" : "; not ended");
}

}  // namespace

Result<std::vector<LogLine>> log_lines(const LogContent& content) {
  ASSIGN_OR_RETURN(const History history, read_history(content));  // checks every record
  std::vector<LogLine> lines;
  std::map<uint64_t, size_t> line_of;  // sequence -> its line
  std::map<uint32_t, std::string> meshes;
  std::set<std::string> reads_data;  // operations that were given a place in the data; the first one is 0
  for (const LogRecord& record : content.records) {
    LogLine line;
    line.offset = record.offset;
    line.kind = record.type;
    switch (record.type) {
      case RecordType::kRun: {
        const auto run = decode<RunRecord>(record.bytes).value();
        line.what = fmt::format("run {}, seed {}: {}{}", run.run, run.seed,
                                lines.empty() ? "begins" : "taken up again", date_text(run.unix_ms));
        break;
      }
      case RecordType::kMesh: {
        const auto mesh = decode<MeshRecord>(record.bytes).value();
        meshes[mesh.mesh] = mesh.name;
        line.mesh = mesh.name;
        line.what = "mesh of " + mesh.shape.to_string();
        break;
      }
      case RecordType::kEpoch: {
        const auto epoch = decode<EpochRecord>(record.bytes).value();
        line.mesh = meshes[epoch.mesh];
        line.epoch = epoch.epoch;
        line.what =
            fmt::format("epoch {}: {}; from watermark {}", epoch.epoch, epoch.reason, epoch.watermark);
        break;
      }
      case RecordType::kCommand: {
        const auto command = decode<Command>(record.bytes).value();
        line.sequence = command.sequence;
        line.epoch = command.epoch;
        line.mesh = meshes[command.mesh];
        line.what = command.operation;
        line.slice = command.ranks.empty() ? "all" : ranks_text(command.ranks);
        line.args = command.args, line.cursor = command.cursor, line.uses = command.uses;
        line.generator_key = command.generator_key, line.deadline_ms = command.deadline_ms;
        if (command.cursor != 0) reads_data.insert(command.operation);
        line.result = kNoResult;
        line_of[command.sequence] = lines.size();
        break;
      }
      case RecordType::kResult: {
        auto result = decode<ResultRecord>(record.bytes).value();
        LogLine& command = lines[line_of.at(result.sequence)];
        command.result = result_text(result.outcomes);
        command.outcomes = std::move(result.outcomes);
        continue;
      }
      case RecordType::kValue: {
        const auto value = decode<ValueRecord>(record.bytes).value();
        line.what = fmt::format("value of #{} fetched ({})", value.sequence,
                                human_bytes(static_cast<double>(value.value.size())));
        break;
      }
      case RecordType::kWatermark: {
        const auto watermark = decode<WatermarkRecord>(record.bytes).value();
        line.mesh = meshes[watermark.mesh];
        line.what = fmt::format("watermark {} in memory{} ({})", watermark.watermark,
                                watermark.durable ? " and on disk" : "",
                                human_bytes(static_cast<double>(watermark.bytes)));
        break;
      }
      case RecordType::kMeshClose: {
        const auto close = decode<MeshCloseRecord>(record.bytes).value();
        line.mesh = meshes[close.mesh];
        line.what = "closed: " + close.reason;
        break;
      }
      case RecordType::kClose:
        line.what = "the program ended";
        break;
    }
    lines.push_back(std::move(line));
  }
  for (LogLine& line : lines) {
    if (line.sequence != 0) line.arguments = arguments_text(line, reads_data.contains(line.what));
  }
  return lines;
}

std::string log_table(std::span<const LogLine> all, size_t last, LogColumns columns) {
  const std::span<const LogLine> lines = all.last(std::min(last, all.size()));
  using Row = std::array<std::string, 11>;
  std::vector<Row> rows{{"#", "epoch", "mesh", "operation", "ranks", "arguments", "cursor", "uses",
                         "generator key", "deadline", "result"}};
  const bool wide = columns == LogColumns::kAll;
  std::set<std::string> meshes;
  for (const auto& line : lines) {
    if (!line.mesh.empty()) meshes.insert(line.mesh);
    if (line.sequence == 0) continue;
    rows.push_back({std::to_string(line.sequence), std::to_string(line.epoch), line.mesh, line.what,
                    line.slice, wide ? preview(line.args) : line.arguments, std::to_string(line.cursor),
                    uses_text(line.uses), fmt::format("{:016x}", line.generator_key),
                    line.deadline_ms > 0 ? human_seconds(static_cast<double>(line.deadline_ms) / 1e3) : "",
                    line.result});
  }
  // Columns that say the same in every row are left out.
  std::array<size_t, 11> width{};
  const bool sliced = std::any_of(lines.begin(), lines.end(), [](const auto& line) {
    return !line.slice.empty() && line.slice != "all";
  });
  const std::array<bool, 11> shown = {true, true, meshes.size() > 1, true, sliced, true, wide, wide, wide,
                                      wide, true};
  for (const auto& row : rows) {
    for (size_t i = 0; i + 1 < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  const auto print = [&](const Row& row) {
    std::string text = fmt::format("{:>{}}  {:>{}}  ", row[0], width[0], row[1], width[1]);
    for (size_t i = 2; i < row.size(); ++i) {
      if (shown[i]) text += i + 1 < row.size() ? fmt::format("{:<{}}  ", row[i], width[i]) : row[i];
    }
    while (text.ends_with(' ')) text.pop_back();
    return text + "\n";
  };
  std::string table = print(rows[0]);
  size_t next = 1;
  for (const auto& line : lines) {
    if (line.sequence != 0) {
      table += print(rows[next++]);
    } else {
      table += fmt::format("{:>{}}  -- {}{}\n", "", width[0], line.mesh.empty() ? "" : line.mesh + ": ",
                           line.what);
    }
  }
  return table + summary(all) + "\n";
}

}  // namespace flywheel::runtime
