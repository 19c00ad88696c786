#include "data/reader.h"

#include <algorithm>
#include <new>

#include "base/json.h"
#include "data/charset.h"
#include "data/parquet_internal.h"

namespace flywheel::data {
namespace {

constexpr uint64_t kUnitBytes = uint64_t{8} << 20;

struct UnitReader {
  const InputFile& file;
  const InputConfig& config;
  UnitResult& out;

  void quarantine(const std::string& place, const std::string& reason) {
    out.quarantined.push_back({file.path, place, reason});
  }
  Document begin_document(const std::string& place) const {
    Document document;
    document.file = file.path;
    document.place = place;
    document.id = document_id(file.path, place);
    return document;
  }
  void finish_document(Document document) {
    if (document.text.find_first_not_of(" \t\r\n") == std::string::npos) {
      out.dropped.push_back({document.id, document.file, document.place, "extract", "no_text", 0, 1, 0, ""});
      return;
    }
    out.documents.push_back(std::move(document));
  }
  DecodedText decode(std::string_view bytes, DeclaredCharset declared) {
    DecodedText text = decode_text(bytes, declared);
    out.decoded += text.charset != "utf-8" ? 1 : 0;
    out.replacements += text.replacements;
    return text;
  }

  // Bytes that no text has: beyond one in a hundred the file is of another kind, whatever it is called.
  // UTF-16 is full of them, and says so in its first bytes.
  bool binary(std::string_view bytes, bool no_zero_bytes) {
    if (bytes.starts_with("\xFF\xFE") || bytes.starts_with("\xFE\xFF")) return false;
    size_t count = 0, first = bytes.size();
    if (const size_t zero = bytes.find('\0'); no_zero_bytes && zero != std::string_view::npos) {
      quarantine(fmt::format("byte {}", zero), "not text: it has zero bytes");
      return true;
    }
    for (size_t i = 0; i < bytes.size(); ++i) {
      const auto c = static_cast<uint8_t>(bytes[i]);
      if (c >= 0x20 || (c >= 0x08 && c <= 0x0D) || c == 0x1B) continue;
      first = std::min(first, i);
      ++count;
    }
    if (count * 100 <= bytes.size()) return false;
    quarantine(fmt::format("byte {}", first),
               fmt::format("not text: {} of {} bytes are control characters", count, bytes.size()));
    return true;
  }

  void html(std::string_view bytes, const ExtractConfig& extract) {
    if (binary(bytes, false)) return;
    const DecodedText page = decode(bytes, DeclaredCharset::kHtml);
    Result<Extracted> extracted = extract_main(page.utf8, extract);
    if (!extracted.ok()) return quarantine("", extracted.error().message);
    Document document = begin_document("");
    document.title = std::move(extracted->title);
    document.language = std::move(extracted->language);
    document.text = std::move(extracted->text);
    finish_document(std::move(document));
  }

  void text(std::string_view bytes) {
    if (binary(bytes, true)) return;
    Document document = begin_document("");
    document.text = decode(bytes, DeclaredCharset::kNone).utf8;
    finish_document(std::move(document));
  }

  void json_line(std::string_view line, int64_t number) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
    if (line.empty()) return;
    const std::string place = "line " + std::to_string(number);
    if (line.size() > static_cast<size_t>(config.max_line_bytes)) {
      return quarantine(
          place, fmt::format("{} bytes; input.max_line_bytes is {}", line.size(), config.max_line_bytes));
    }
    Result<Json> parsed = parse_json(line);
    if (!parsed.ok()) return quarantine(place, parsed.error().message);
    Json& json = parsed.value();
    if (!json.is_object())
      return quarantine(place, std::string("a JSON object is wanted, not ") +
                                   (json.is_array() ? "an " : "a ") + json.type_name());
    const auto text = json.find(config.text_key);
    if (text == json.end()) return quarantine(place, "no key \"" + config.text_key + "\" (input.text_key)");
    if (!text->is_string()) {
      return quarantine(place, fmt::format("\"{}\" is a {}, not a text", config.text_key, text->type_name()));
    }
    Document document = begin_document(place);
    document.text = std::move(text->get_ref<std::string&>());
    const auto take = [&](const char* key, std::string& to) {
      if (auto it = json.find(key); it != json.end() && it->is_string())
        to = std::move(it->get_ref<std::string&>());
    };
    take("url", document.url), take("title", document.title), take("language", document.language);
    finish_document(std::move(document));
  }

  void jsonl(std::string_view bytes, const ReadUnit& unit) {
    size_t at = unit.begin;
    if (at > 0) {  // the line that is under way belongs to the unit before
      at = bytes.find('\n', at - 1);
      at = at == std::string_view::npos ? bytes.size() : at + 1;
    }
    const size_t end = unit.end == 0 ? bytes.size() : std::min<size_t>(unit.end, bytes.size());
    for (int64_t number = unit.first_line; at < end; ++number) {
      const size_t line_end = std::min(bytes.find('\n', at), bytes.size());
      json_line(bytes.substr(at, line_end - at), number);
      at = line_end + 1;
    }
  }

  void parquet(std::string_view bytes, int row_group) {
    Result<std::vector<ParquetRow>> rows = read_parquet(bytes, row_group, config.text_key);
    if (!rows.ok()) return quarantine(fmt::format("row group {}", row_group), rows.error().message);
    for (ParquetRow& row : rows.value()) {
      const std::string place = "row " + std::to_string(row.number);
      if (!row.has_text) {
        quarantine(place, "\"" + config.text_key + "\" is null");
        continue;
      }
      Document document = begin_document(place);
      document.text = decode(row.text, DeclaredCharset::kNone).utf8;
      document.url = std::move(row.url), document.title = std::move(row.title);
      document.language = std::move(row.language);
      finish_document(std::move(document));
    }
  }
};

void plan_jsonl(const InputList& inputs, size_t f, const InputConfig& config, std::vector<ReadUnit>& units) {
  const InputFile& file = inputs.files[f];
  if (file.size_bytes <= kUnitBytes || is_compressed(file)) {
    units.push_back({.file = f});
    return;
  }
  Result<LoadedFile> loaded = load_input(file, config);
  if (!loaded.ok()) {
    units.push_back({.file = f, .problem = loaded.error().message});
    return;
  }
  const std::string_view bytes = loaded->bytes();
  int64_t line = 1;
  for (uint64_t begin = 0; begin < bytes.size(); begin += kUnitBytes) {
    // The number of the first line that starts at or after `begin`.
    int64_t first = line;
    if (begin > 0 && bytes[begin - 1] != '\n') ++first;
    const uint64_t end = std::min<uint64_t>(begin + kUnitBytes, bytes.size());
    units.push_back({.file = f, .begin = begin, .end = end, .first_line = first});
    line += std::count(bytes.begin() + static_cast<std::ptrdiff_t>(begin),
                       bytes.begin() + static_cast<std::ptrdiff_t>(end), '\n');
  }
}

// A compressed file is unpacked to be planned; the other files are read all the same.
Result<LoadedFile> load_or_fail(const InputFile& file, const InputConfig& config) {
  try {
    return load_input(file, config);
  } catch (const std::bad_alloc&) {
    return make_error(ErrorCode::kFull, "{}", kTooLittleMemory);
  }
}

}  // namespace

std::vector<ReadUnit> plan_units(const InputList& inputs, const InputConfig& config) {
  std::vector<ReadUnit> units;
  for (size_t f = 0; f < inputs.files.size(); ++f) {
    const InputFile& file = inputs.files[f];
    if (file.kind == InputKind::kJsonl) {
      plan_jsonl(inputs, f, config, units);
    } else if (file.kind == InputKind::kParquet) {
      Result<LoadedFile> loaded = load_or_fail(file, config);
      Result<int> groups = loaded.ok() ? parquet_row_groups(loaded->bytes()) : Result<int>(loaded.error());
      if (!groups.ok()) units.push_back({.file = f, .problem = groups.error().message});
      for (int group = 0; groups.ok() && group < groups.value(); ++group)
        units.push_back({.file = f, .row_group = group});
    } else {
      units.push_back({.file = f});
    }
  }
  return units;
}

UnitResult read_unit(const InputList& inputs, const ReadUnit& unit, const InputConfig& config,
                     const ExtractConfig& extract) {
  UnitResult result;
  const InputFile& file = inputs.files[unit.file];
  UnitReader reader{file, config, result};
  if (!unit.problem.empty()) {
    reader.quarantine("", unit.problem);
    return result;
  }
  Result<LoadedFile> loaded = load_input(file, config);
  if (!loaded.ok()) {
    reader.quarantine("", loaded.error().message);
    return result;
  }
  const std::string_view bytes = loaded->bytes();
  result.bytes_in = static_cast<int64_t>(unit.end > 0         ? unit.end - unit.begin
                                         : unit.row_group > 0 ? 0
                                                              : bytes.size());
  switch (file.kind) {
    case InputKind::kHtml:
      reader.html(bytes, extract);
      break;
    case InputKind::kText:
      reader.text(bytes);
      break;
    case InputKind::kJsonl:
      reader.jsonl(bytes, unit);
      break;
    case InputKind::kParquet:
      reader.parquet(bytes, unit.row_group);
      break;
  }
  return result;
}

}  // namespace flywheel::data
