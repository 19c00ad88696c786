// The filters of text, and those that make text of other values.
#include <algorithm>

#include "model/jinja_filters_internal.h"
#include "model/jinja_format.h"
#include "model/jinja_text.h"

namespace flywheel::model::jinja {
namespace {

// Counted against the limits; markup where what it was made of was.
Value made(Renderer& renderer, std::string text, const Value& from = Value()) {
  renderer.charge(text.size());
  return Value(std::move(text), from.is_markup());
}

Value tojson(Renderer& renderer, const Value& value, Given given) {
  JsonStyle style;
  style.ascii = flag_argument(given, 0, "ensure_ascii", false);
  const Value* indent = given.find(1, "indent");
  if (indent && !indent->is_none()) {
    style.multiline = true;
    style.item_separator = std::string(1, ',');
    if (indent->is_string()) {
      style.indent = indent->text();
    } else {
      const int64_t width = std::clamp<int64_t>(int_argument(given, 1, "indent", 0), 0, 1000);
      style.indent = std::string(static_cast<size_t>(width), ' ');
    }
  }
  const Value* separators = given.find(2, "separators");
  if (separators && !separators->is_none()) {
    const Items pair = separators->iterate();
    if (pair.size() != 2) fail("separators must be a pair");
    style.item_separator = pair[0].str();
    style.key_separator = pair[1].str();
  }
  style.sort_keys = flag_argument(given, 3, "sort_keys", false);
  renderer.step(value.weight() / 4);
  renderer.charge(static_cast<size_t>(value.weight()) *
                  (style.indent.size() + style.item_separator.size() + style.key_separator.size()));
  std::string text = to_json(value, style);
  renderer.charge(text.size());
  return text;
}

Value indent(Renderer& renderer, const Value& value, Given given) {
  std::string space = "    ";
  if (const Value* width = given.find(0, "width")) {
    space =
        width->is_string()
            ? width->text()
            : std::string(
                  static_cast<size_t>(std::clamp<int64_t>(int_argument(given, 0, "width", 4), 0, 1000)), ' ');
  }
  const bool first = flag_argument(given, 1, "first", false), blank = flag_argument(given, 2, "blank", false);
  const std::string text = value.str();
  std::string out;
  bool at_first = true;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    if (!at_first) out += '\n';
    if (at_first ? first : (blank || !line.empty())) out += space;
    out += line;
    renderer.charge(space.size());
    at_first = false;
    at = end + 1;
  }
  return made(renderer, std::move(out), value);
}

Value replace(Renderer& renderer, const Value& value, Given given) {
  const Value* from = given.find(0, "old");
  const Value* to = given.find(1, "new");
  if (!from || !to) fail("replace needs what to replace and with what");
  return made(
      renderer,
      replace_text(renderer, value.str(), from->str(), to->str(), int_argument(given, 2, "count", -1)),
      value);
}

Value escape(Renderer& renderer, const Value& value, Given) {
  if (value.is_markup()) return value;
  std::string out = value.str();
  for (const auto& [from, to] :
       {std::pair{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"'", "&#39;"}, {"\"", "&#34;"}}) {
    out = replace_text(renderer, out, from, to, -1);
  }
  return Value(std::move(out), true);
}

Value format(Renderer& renderer, const Value& value, Given given) {
  if (!given.named.empty()) {
    Pairs pairs;
    for (const auto& [name, item] : given.named) pairs.emplace_back(name, item);
    return made(renderer, percent_format(renderer, value.str(), Value::dict(std::move(pairs))));
  }
  return made(renderer, percent_format(renderer, value.str(), Value::list(given.positional, true)));
}

}  // namespace

const Filters& text_filters() {
  static const Filters table = {
      {"capitalize", [](Renderer& r, const Value& v, Given) { return made(r, capitalize_text(v.str()), v); }},
      {"escape", escape},
      {"format", format},
      {"indent", indent},
      {"lower", [](Renderer& r, const Value& v, Given) { return made(r, lower_case(v.str()), v); }},
      {"replace", replace},
      {"safe", [](Renderer& r, const Value& v, Given) { return Value(r.str(v), true); }},
      {"string", [](Renderer& r, const Value& v, Given) { return v.is_string() ? v : Value(r.str(v)); }},
      {"title", [](Renderer& r, const Value& v, Given) { return made(r, title_text(v.str()), v); }},
      {"tojson", tojson},
      {"trim",
       [](Renderer& r, const Value& v, Given g) -> Value {
         const Value* characters = g.find(0, "chars");
         const std::string set = characters && !characters->is_none() ? characters->str() : "";
         return made(
             r, strip_text(v.str(), characters && !characters->is_none() ? &set : nullptr, true, true), v);
       }},
      {"upper", [](Renderer& r, const Value& v, Given) { return made(r, upper_case(v.str()), v); }},
      {"wordcount",
       [](Renderer&, const Value& v, Given) -> Value {
         return static_cast<int64_t>(split_spaces(v.str(), -1).size());
       }},
  };
  return table;
}

}  // namespace flywheel::model::jinja
