#include "runtime/log_table.h"

#include <algorithm>
#include <array>
#include <map>

#include "runtime/history.h"

namespace flywheel::runtime {
namespace {

// "0-3,6": runs of ranks.
std::string ranks_text(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i;
    while (end + 1 < ranks.size() && ranks[end + 1] == int64_t{ranks[end]} + 1) ++end;
    text += (text.empty() ? "" : ",") + std::to_string(ranks[i]);
    if (end > i) text += "-" + std::to_string(ranks[end]);
    i = end + 1;
  }
  return text;
}

// Text as it is, other bytes as dots; long ones by their size.
std::string preview(const std::string& bytes) {
  if (bytes.empty()) return "";
  std::string text;
  for (const char c : bytes.substr(0, 40)) text += c >= ' ' && c < 127 ? c : '.';
  if (bytes.size() > 40) text += fmt::format("... ({} bytes)", bytes.size());
  return text;
}

std::string outcome_text(const Outcome& outcome) {
  if (outcome.failed) return fmt::format("failed ({}): {}", error_code_name(outcome.code), outcome.value);
  if (outcome.size_bytes == 0) return "ok";
  std::string text = fmt::format("{:08x}", outcome.digest >> 32);
  if (outcome.has_value) text += " \"" + preview(outcome.value) + "\"";
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

std::string arguments_text(const Command& command) {
  std::string text = preview(command.args);
  const auto add = [&](const std::string& more) { text += (text.empty() ? "" : ", ") + more; };
  if (command.cursor != 0) add(fmt::format("cursor {}", command.cursor));
  for (const uint64_t used : command.uses) add(fmt::format("#{}", used));
  return text;
}

}  // namespace

Result<std::vector<LogLine>> log_lines(const LogContent& content) {
  ASSIGN_OR_RETURN(const History history, read_history(content));  // checks every record
  std::vector<LogLine> lines;
  std::map<uint64_t, size_t> line_of;  // sequence -> its line
  std::map<uint32_t, std::string> meshes;
  for (const LogRecord& record : content.records) {
    LogLine line;
    line.offset = record.offset;
    switch (record.type) {
      case RecordType::kRun: {
        const auto run = decode<RunRecord>(record.bytes).value();
        line.what = fmt::format("run {}, seed {}: {}", run.run, run.seed,
                                lines.empty() ? "begins" : "taken up again");
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
        line.arguments = arguments_text(command);
        line.result = "no result";
        line_of[command.sequence] = lines.size();
        break;
      }
      case RecordType::kResult: {
        const auto result = decode<ResultRecord>(record.bytes).value();
        lines[line_of.at(result.sequence)].result = result_text(result.outcomes);
        continue;
      }
      case RecordType::kValue: {
        const auto value = decode<ValueRecord>(record.bytes).value();
        line.what = fmt::format("value of #{} fetched ({} bytes)", value.sequence, value.value.size());
        break;
      }
      case RecordType::kWatermark: {
        const auto watermark = decode<WatermarkRecord>(record.bytes).value();
        line.mesh = meshes[watermark.mesh];
        line.what = fmt::format("watermark {} in memory{} ({} bytes)", watermark.watermark,
                                watermark.durable ? " and on disk" : "", watermark.bytes);
        break;
      }
      case RecordType::kClose:
        line.what = "the program ended";
        break;
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

std::string log_table(const std::vector<LogLine>& lines) {
  using Row = std::array<std::string, 7>;
  std::vector<Row> rows{{"#", "epoch", "mesh", "operation", "ranks", "arguments", "result"}};
  std::array<size_t, 7> width{};
  for (const auto& line : lines) {
    if (line.sequence == 0) continue;
    rows.push_back({std::to_string(line.sequence), std::to_string(line.epoch), line.mesh, line.what,
                    line.slice, line.arguments, line.result});
  }
  for (const auto& row : rows) {
    for (size_t i = 0; i + 1 < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  const auto print = [&](const Row& row) {
    std::string text = fmt::format("{:>{}}  {:>{}}  ", row[0], width[0], row[1], width[1]);
    for (size_t i = 2; i < row.size(); ++i)
      text += i + 1 < row.size() ? fmt::format("{:<{}}  ", row[i], width[i]) : row[i];
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
  return table;
}

}  // namespace flywheel::runtime
