#include <optional>

#include "base/deadline.h"
#include "base/hash.h"
#include "base/log.h"
#include "data/metrics.h"
#include "data/stage_internal.h"

namespace flywheel::data {
namespace {

// Of stages/NAME.json (docs/formats/dataset.md). A stage with a record of another version is run again.
constexpr int kRecordVersion = 2;

// {"shards/train/manifest.json": {"bytes": 912, "xxh3": "0f3c..."}, ...}: the files as they lie there now.
Result<OrderedJson> sums_of(const StageContext& context, const std::vector<std::string>& outputs) {
  std::vector<Result<OrderedJson>> sums(outputs.size(), OrderedJson());
  context.pool.parallel_for(static_cast<int64_t>(outputs.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto o = static_cast<size_t>(i);
      const Result<MappedFile> file = MappedFile::open(context.path(outputs[o]));
      if (!file.ok()) {
        sums[o] = file.error();
        continue;
      }
      sums[o] = OrderedJson{{"bytes", file->size()}, {"xxh3", fmt::format("{:016x}", xxh64(file->bytes()))}};
    }
  });
  OrderedJson json = OrderedJson::object();
  for (size_t o = 0; o < outputs.size(); ++o) {
    if (!sums[o].ok()) return sums[o].error();
    json[outputs[o]] = std::move(sums[o]).value();
  }
  return json;
}

// The names of the files in a record; kInvalid when it is none of this version, is damaged, or was left by a
// run of the stage on other inputs.
Result<std::vector<std::string>> recorded_outputs(OrderedJson record, const Stage& stage) {
  const auto other = [](const char* why) { return make_error(ErrorCode::kInvalid, "{}", why); };
  try {
    if (record.at("version").get<int>() != kRecordVersion) return other("of another version");
    if (record.at("key").get<std::string>() != stage.key) return other("of other inputs or another config");
    const uint32_t crc = record.at("crc32c").get<uint32_t>();
    record.erase("crc32c");
    if (crc32c(record.dump()) != crc) return other("its own checksum does not match");
    std::vector<std::string> names;
    for (const auto& [name, sum] : record.at("outputs").items()) names.push_back(name);
    for (const std::string& output : stage.outputs) {
      if (std::find(names.begin(), names.end(), output) == names.end())
        return other("a file is missing in it");
    }
    return names;
  } catch (const OrderedJson::exception& error) {
    return other(error.what());
  }
}

// The report of the run that wrote the outputs, when it had the same key and they are as it left them.
std::optional<StageReport> done_before(const StageContext& context, const Stage& stage,
                                       const std::string& record_path) {
  if (!path_exists(record_path)) return std::nullopt;
  const Result<std::string> text = read_file(record_path);
  const Result<OrderedJson> record =
      text.ok() ? parse_ordered_json(text.value()) : Result<OrderedJson>(text.error());
  if (!record.ok()) return std::nullopt;
  const Result<std::vector<std::string>> names = recorded_outputs(record.value(), stage);
  if (!names.ok()) {
    LOG_DEBUG("data: the record of {} does not count: {}", stage.name, names.error().message);
    return std::nullopt;
  }
  const Result<OrderedJson> sums = sums_of(context, names.value());
  if (!sums.ok() || sums.value() != record->at("outputs")) {
    std::string changed = sums.ok() ? "" : sums.error().message;
    for (const std::string& name : names.value()) {
      if (!changed.empty()) break;
      if (sums->at(name) != record->at("outputs").at(name))
        changed = name + " was changed since it was written";
    }
    LOG_WARN("data: {}; the stage {} runs again", changed, stage.name);
    return std::nullopt;
  }
  Result<StageReport> report = stage_from_json(record->at("report"));
  if (!report.ok()) return std::nullopt;
  return std::move(report).value();
}

}  // namespace

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
  const std::string record_path = path("stages/" + stage.name + ".json");
  if (std::optional<StageReport> before = done_before(*this, stage, record_path)) {
    before->reused = true;
    LOG_DEBUG("data: {} is unchanged", stage.name);
    report.stages.push_back(std::move(*before));
    return {};
  }
  RETURN_IF_ERROR(remove_all(record_path));
  StageReport fresh;
  fresh.name = stage.name;
  const Stopwatch clock;
  RETURN_IF_ERROR(body(fresh));
  fresh.seconds = clock.seconds();
  ASSIGN_OR_RETURN(OrderedJson sums, sums_of(*this, stage.outputs));
  OrderedJson record = {{"version", kRecordVersion},
                        {"key", stage.key},
                        {"outputs", std::move(sums)},
                        {"report", to_json(fresh)}};
  record["crc32c"] = crc32c(record.dump());  // of the compact form without this key
  // Written last, so a stage that was cut off is not done.
  RETURN_IF_ERROR(write_file(record_path, record.dump(1) + "\n"));
  metrics().count(fresh);
  report.stages.push_back(std::move(fresh));
  return {};
}

}  // namespace flywheel::data
