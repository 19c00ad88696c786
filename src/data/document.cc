#include "data/document.h"

#include "base/hash.h"
#include "base/json.h"

namespace flywheel::data {
namespace {

constexpr auto kReplace = OrderedJson::error_handler_t::replace;

void put(OrderedJson& json, const char* key, const std::string& value) {
  if (!value.empty()) json[key] = value;
}

}  // namespace

std::string document_id(std::string_view file, std::string_view place) {
  return fmt::format("{:016x}", xxh64(place, xxh64(file)));
}

std::string to_json_line(const Document& document) {
  OrderedJson json;
  json["id"] = document.id;
  json["file"] = document.file;
  put(json, "place", document.place);
  put(json, "url", document.url);
  put(json, "title", document.title);
  put(json, "language", document.language);
  json["text"] = document.text;
  return json.dump(-1, ' ', false, kReplace);
}

std::string to_json_line(const Dropped& dropped) {
  OrderedJson json;
  json["id"] = dropped.id;
  json["file"] = dropped.file;
  put(json, "place", dropped.place);
  json["stage"] = dropped.stage;
  json["rule"] = dropped.rule;
  json["value"] = dropped.value;
  json["threshold"] = dropped.threshold;
  json["chars"] = dropped.chars;
  put(json, "duplicate_of", dropped.duplicate_of);
  return json.dump(-1, ' ', false, kReplace);
}

std::string to_json_line(const Quarantined& quarantined) {
  OrderedJson json;
  json["file"] = quarantined.file;
  put(json, "place", quarantined.place);
  json["reason"] = quarantined.reason;
  return json.dump(-1, ' ', false, kReplace);
}

Result<Document> document_from_json(std::string_view line) {
  ASSIGN_OR_RETURN(Json json, parse_json(line, 16));
  Document document;
  if (!json.is_object()) return make_error(ErrorCode::kInvalid, "a document is a JSON object");
  const auto take = [&](const char* key, std::string& out) {
    if (auto it = json.find(key); it != json.end() && it->is_string()) {
      out = std::move(it->get_ref<std::string&>());
    }
  };
  take("id", document.id), take("file", document.file), take("place", document.place);
  take("url", document.url), take("title", document.title), take("language", document.language);
  take("text", document.text);
  return document;
}

}  // namespace flywheel::data
