#include "base/deadline.h"
#include "base/hash.h"
#include "base/log.h"
#include "data/metrics.h"
#include "data/stage_internal.h"

namespace flywheel::data {

std::string stage_key(const std::vector<std::string>& parts) {
  Sha256 sha;
  for (const std::string& part : parts) {
    sha.update(std::to_string(part.size()) + ":");
    sha.update(part);
  }
  return sha.hex();
}

std::vector<std::string_view> line_chunks(std::string_view bytes, size_t chunk_bytes) {
  std::vector<std::string_view> chunks;
  while (!bytes.empty()) {
    size_t end = bytes.size() <= chunk_bytes ? bytes.size() : bytes.find('\n', chunk_bytes);
    end = end == std::string_view::npos ? bytes.size() : std::min(end + 1, bytes.size());
    chunks.push_back(bytes.substr(0, end));
    bytes.remove_prefix(end);
  }
  return chunks;
}

Result<void> StageContext::run(const Stage& stage, const std::function<Result<void>(StageReport&)>& body) {
  const std::string done_path = path("stages/" + stage.name + ".json");
  // {"key", "outputs": {file: bytes}, "report"}: written last, so a stage that was cut off is not done.
  if (path_exists(done_path)) {
    ASSIGN_OR_RETURN(const std::string text, read_file(done_path));
    Result<OrderedJson> json = parse_ordered_json(text);
    bool same = json.ok() && json->is_object() && json->value("key", "") == stage.key;
    for (const std::string& output : stage.outputs) {
      if (!same) break;
      const Result<uint64_t> size = file_size(path(output));
      same = size.ok() && json->at("outputs").value(output, uint64_t{0}) == size.value();
    }
    Result<StageReport> before = same ? stage_from_json(json->at("report"))
                                      : Result<StageReport>(make_error(ErrorCode::kNotFound, "not done"));
    if (before.ok()) {
      before->reused = true;
      LOG_DEBUG("data: {} is unchanged", stage.name);
      report.stages.push_back(std::move(before).value());
      return {};
    }
    RETURN_IF_ERROR(remove_all(done_path));
  }
  StageReport fresh;
  fresh.name = stage.name;
  const Stopwatch clock;
  RETURN_IF_ERROR(body(fresh));
  fresh.seconds = clock.seconds();
  OrderedJson json = {{"key", stage.key}, {"outputs", OrderedJson::object()}, {"report", to_json(fresh)}};
  for (const std::string& output : stage.outputs) {
    ASSIGN_OR_RETURN(const uint64_t size, file_size(path(output)));
    json["outputs"][output] = size;
  }
  RETURN_IF_ERROR(write_file(done_path, json.dump(1) + "\n"));
  metrics().count(fresh);
  report.stages.push_back(std::move(fresh));
  return {};
}

}  // namespace flywheel::data
