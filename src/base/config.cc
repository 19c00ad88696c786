#include "base/config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <set>
#include <sstream>

#include <yaml-cpp/eventhandler.h>

#include "base/file.h"

namespace flywheel {

namespace {

// As names are compared: in small letters, and _ for -.
std::string plain_name(std::string name) {
  for (char& c : name) c = static_cast<char>(c == '-' ? '_' : c >= 'A' && c <= 'Z' ? c | 0x20 : c);
  return name;
}

// Letters that change, come, go, or change places with their neighbour (optimal string alignment).
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j < row.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    before.swap(above), above.swap(row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row.back();
}

size_t letters_of(const std::string& name) {
  return name.size() - std::min(name.find_first_not_of('_'), name.size());
}

}  // namespace

std::string nearest_name(const std::string& given, const std::vector<std::string>& candidates) {
  const std::string name = plain_name(given);
  // Of a short name two changes make another word: foo is not aio, and train is not trace.
  const size_t allowed = name.size() < 2 ? 0 : name.size() < 6 ? 1 : std::max<size_t>(2, name.size() / 3);
  std::string best, begins;
  size_t best_distance = allowed + 1, least_rest = SIZE_MAX;
  for (const auto& candidate : candidates) {
    const std::string known = plain_name(candidate);
    const size_t distance = edit_distance(name, known);
    if (distance < best_distance) best_distance = distance, best = candidate;
    if (!name.starts_with(known) && !known.starts_with(name)) continue;
    const bool shorter = name.size() < known.size();
    const size_t rest = shorter ? known.size() - name.size() : name.size() - known.size();
    if (letters_of(shorter ? name : known) >= 2 && rest < least_rest) least_rest = rest, begins = candidate;
  }
  return best.empty() ? begins : best;
}

std::string read_config_file(const std::string& path) {
  auto text = read_file(path);
  if (!text.ok()) throw UserError("", text.error().message);  // it names the file
  return std::move(text).value();
}

namespace config_internal {

// What a flag put into the tree carries the flag as its YAML tag, so that a mistake is blamed on the flag and
// not on the file.
constexpr const char *kFlag = "--", *kSet = "--set ";

void tag_all(YAML::Node node, const std::string& flag) {
  node.SetTag(flag);
  if (node.IsSequence()) {
    for (const auto& element : node) tag_all(element, flag);
  } else if (node.IsMap()) {
    for (const auto& entry : node) tag_all(entry.second, flag);
  }
}

std::string where(const std::string& file, const YAML::Node& node) {
  if (node.Tag().starts_with(kFlag)) return node.Tag();
  const YAML::Mark mark = node.Mark();
  return mark.is_null() ? file : file + ":" + std::to_string(mark.line + 1);
}

namespace {

// What such a key holds, in whatever config, is a secret, and no message repeats it. So a new secret field is
// called by one of these.
bool names_secret(const std::string& text) {
  return std::ranges::any_of(std::array{"api_key", "secret", "password"},
                             [&](const char* word) { return text.find(word) != std::string::npos; });
}

}  // namespace

void wrong_type(const std::string& file, const YAML::Node& node, const std::string& path,
                const char* wanted) {
  std::string got = node.IsScalar()     ? names_secret(path) ? "a text" : "\"" + node.Scalar() + "\""
                    : node.IsSequence() ? "a list"
                    : node.IsMap()      ? "a mapping"
                                        : "nothing";
  throw UserError(where(file, node),
                  (path.empty() ? "the config" : path) + " must be " + wanted + ", not " + got);
}

void unknown_name(const std::string& file, const YAML::Node& node, const std::string& path,
                  const std::vector<std::string>& known) {
  const std::string text = node.IsScalar() ? node.Scalar() : "";
  std::string list;
  for (const auto& name : known) list += (list.empty() ? "" : ", ") + name;
  const std::string near = nearest_name(text, known);
  throw UserError(where(file, node),
                  (path.empty() ? "" : path + ": ") + "\"" + text + "\" is not one of " + list,
                  near.empty() ? "" : "did you mean " + near + "?");
}

YAML::Node names_node(const std::string& place, const std::string& text) {
  const bool list = text.find(',') != std::string::npos && !text.starts_with('[');
  YAML::Node node = parse(place, list ? "[" + text + "]" : text);
  if (place.starts_with(kFlag)) tag_all(node, place);
  return node;
}

std::string key_text(const std::string& file, const YAML::Node& key) {
  if (!key.IsScalar()) throw UserError(where(file, key), "a key must be a text");
  return key.Scalar();
}

namespace {

// Hears where documents begin, and nothing of what is in them.
struct DocumentLines final : YAML::EventHandler {
  std::vector<int> lines;
  void OnDocumentStart(const YAML::Mark& mark) override { lines.push_back(mark.line + 1); }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {
  }
  void OnMapEnd() override {}
};

// YAML::Load() ignores what follows the first document, and YAML::LoadAll() never ends on some texts.
std::optional<int> second_document_line(const std::string& text) {
  std::istringstream stream(text);
  YAML::Parser parser(stream);
  DocumentLines documents;
  if (!parser.HandleNextDocument(documents) || !parser.HandleNextDocument(documents)) return std::nullopt;
  return documents.lines.back();
}

}  // namespace

YAML::Node parse(const std::string& file, const std::string& text) {
  try {
    YAML::Node root = YAML::Load(text);
    if (const auto line = second_document_line(text)) {
      throw UserError(file.starts_with(kFlag) ? file : file + ":" + std::to_string(*line),
                      "a second YAML document begins here; a config is one", "leave it away");
    }
    if (root.IsNull() || !root.IsDefined()) root = YAML::Node(YAML::NodeType::Map);
    return root;
  } catch (const YAML::Exception& error) {
    if (file.starts_with(kFlag)) throw UserError(file, "not YAML: " + error.msg);
    throw UserError(file + ":" + std::to_string(error.mark.line + 1), "not YAML: " + error.msg);
  }
}

std::string integer_from_to(int64_t least, uint64_t most) {
  if (least == 0 && most > INT64_MAX) return "an integer of 0 or more";
  return fmt::format("an integer from {} to {}", least, most);
}

void apply_override(const YAML::Node& root, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  const std::string flag =
      kSet + (names_secret(assignment) ? assignment.substr(0, assignment.find_first_of("=: ")) : assignment);
  if (equals == std::string::npos || equals == 0) {
    throw UserError(flag, "an override is KEY=VALUE",
                    "the key of a group stands behind a dot: GROUP.KEY=VALUE");
  }
  if (!root.IsMap()) return;  // read_value says so, with the line
  const YAML::Node value = parse(flag, assignment.substr(equals + 1));
  std::string path = assignment.substr(0, equals);
  YAML::Node node = root;
  for (size_t dot; (dot = path.find('.')) != std::string::npos; path = path.substr(dot + 1)) {
    // Node's operator= writes through; reset() moves the handle.
    YAML::Node child = node[path.substr(0, dot)];
    if (child.IsDefined() && !child.IsMap() && !child.IsNull()) {
      throw UserError(flag, path.substr(0, dot) + " is not a mapping of keys");
    }
    if (!child.IsDefined()) child = YAML::Node(YAML::NodeType::Map), child.SetTag(flag);
    node.reset(child);
  }
  const bool empty = equals + 1 == assignment.size();
  YAML::Node own = empty ? YAML::Node("") : YAML::Clone(value);
  tag_all(own, flag);
  node[path] = own;
}

void check_keys(const std::string& file, const std::string& path, const YAML::Node& node,
                const std::vector<std::string>& known) {
  std::set<std::string> seen;
  for (const auto& entry : node) {
    const std::string key = key_text(file, entry.first);
    const YAML::Node& origin = entry.second.Tag().starts_with(kSet) ? entry.second : entry.first;
    if (!seen.insert(key).second) {
      throw UserError(where(file, entry.first), (path.empty() ? "" : path + ".") + key + ": set twice",
                      "leave one of them");
    }
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const std::string prefix = path.empty() ? "" : path + ".";
    const std::string near = nearest_name(key, known);
    std::string hint = "did you mean " + prefix + near + "?";
    if (near.empty()) {
      hint = "known here:";
      for (const auto& name : known) hint += " " + name;
    }
    throw UserError(where(file, origin), prefix + key + ": no such key", hint);
  }
}

bool read_bool(const YAML::Node& node, bool& out) {
  return node.IsScalar() && YAML::convert<bool>::decode(node, out);
}

bool read_double(const YAML::Node& node, double& out) {
  if (!node.IsScalar()) return false;
  std::string text = node.Scalar();
  std::erase(text, '_');
  if (text == ".inf" || text == "inf") return out = INFINITY, true;
  if (text == "-.inf" || text == "-inf") return out = -INFINITY, true;
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

bool read_integer(const YAML::Node& node, int64_t& out) {
  if (!node.IsScalar()) return false;
  std::string text = node.Scalar();
  std::erase(text, '_');
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), out);
  if (error == std::errc() && end == text.data() + text.size()) return true;
  double value = 0;
  if (!read_double(node, value) || value != std::floor(value) || std::abs(value) > 0x1p53) return false;
  out = static_cast<int64_t>(value);
  return true;
}

YAML::Node write_double(double value) {
  if (std::isinf(value)) return YAML::Node(value > 0 ? ".inf" : "-.inf");
  // Shortest of float and double: 0.1f must not become 0.10000000149011612.
  const bool is_float = static_cast<double>(static_cast<float>(value)) == value;
  return YAML::Node(is_float ? fmt::format("{}", static_cast<float>(value)) : fmt::format("{}", value));
}

std::string emit(const YAML::Node& node) {
  YAML::Emitter out;
  out << node;
  return std::string(out.c_str()) + "\n";
}

}  // namespace config_internal
}  // namespace flywheel
