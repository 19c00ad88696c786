// The filters and tests of the template language.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>

#include "model/jinja_render.h"
#include "model/jinja_text.h"
#include "model/unicode.h"

namespace flywheel::model::jinja {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw JinjaError(message);
}

using Given = const Arguments&;
using Filter = Value (*)(Renderer&, const Value&, Given);
using Test = bool (*)(Renderer&, const Value&, Given);

std::string text_argument(Given given, size_t at, std::string_view name, std::string fallback) {
  const Value* value = given.find(at, name);
  if (!value || value->is_none()) return fallback;
  value->require_defined();
  return value->str();
}
int64_t int_argument(Given given, size_t at, std::string_view name, int64_t fallback) {
  const Value* value = given.find(at, name);
  if (!value || value->is_none()) return fallback;
  if (!value->is_integral())
    fail(fmt::format("'{}' object cannot be interpreted as an integer", value->type_name()));
  return value->integer();
}
bool flag_argument(Given given, size_t at, std::string_view name, bool fallback) {
  const Value* value = given.find(at, name);
  return value ? value->truthy() : fallback;
}

Value made(Renderer& renderer, std::string text, const Value& from = Value()) {
  renderer.charge(text.size());
  return Value(std::move(text), from.is_markup());
}

// "a.b.0" of a value.
Value nested(Renderer& renderer, Value value, const Value& path) {
  if (path.is_int()) return renderer.item(value, path);
  const std::string text = path.str();
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('.', at), text.size());
    const std::string part = text.substr(at, end - at);
    const bool number = !part.empty() && part.size() < 10 &&
                        std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    value = renderer.item(value, number ? Value(int64_t{std::stoi(part)}) : Value(part));
    at = end + 1;
  }
  return value;
}

// Without regard to case, as Jinja's sorting and comparing filters do unless told otherwise.
Value sort_key(const Value& value, bool case_sensitive) {
  return value.is_string() && !case_sensitive ? Value(lower_case(value.text())) : value;
}

// Sorted by `key`; comparing what cannot be compared throws.
template <typename Key>
void sort_by(Renderer& renderer, Items& items, bool reverse, Key&& key) {
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) {
    renderer.step();
    Value by = key(item);
    keyed.emplace_back(std::move(by), std::move(item));
  }
  // Checked before, for std::stable_sort wants an order that does not throw half way.
  for (size_t i = 1; i < keyed.size(); ++i) compare(keyed[i - 1].first, keyed[i].first, "<");
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    renderer.step();
    return reverse ? compare(b.first, a.first, "<") : compare(a.first, b.first, "<");
  });
  for (size_t i = 0; i < items.size(); ++i) items[i] = std::move(keyed[i].second);
}

Value dictsort(Renderer& renderer, const Value& value, Given given) {
  if (!value.is_dict()) {
    value.require_defined();
    fail(fmt::format("'{}' object has no attribute 'items'", value.type_name()));
  }
  const bool case_sensitive = flag_argument(given, 0, "case_sensitive", false);
  const std::string by = text_argument(given, 1, "by", "key");
  if (by != "key" && by != "value") fail("You can only sort by either \"key\" or \"value\"");
  Items items;
  for (const auto& [key, item] : value.dict().pairs) items.push_back(Value::list({key, item}, true));
  sort_by(renderer, items, flag_argument(given, 2, "reverse", false), [&](const Value& pair) {
    return sort_key(pair.list().items[by == "key" ? 0 : 1], case_sensitive);
  });
  return Value::list(std::move(items));
}

Value sort(Renderer& renderer, const Value& value, Given given) {
  Items items = renderer.items(value);
  const Value* attribute = given.find(2, "attribute");
  const bool case_sensitive = flag_argument(given, 1, "case_sensitive", false);
  sort_by(renderer, items, flag_argument(given, 0, "reverse", false), [&](const Value& item) {
    return sort_key(attribute && !attribute->is_none() ? nested(renderer, item, *attribute) : item,
                    case_sensitive);
  });
  return Value::list(std::move(items));
}

template <bool kMax>
Value extreme(Renderer& renderer, const Value& value, Given given) {
  const Items items = renderer.items(value);
  if (items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  const bool case_sensitive = flag_argument(given, 0, "case_sensitive", false);
  const Value* attribute = given.find(1, "attribute");
  const auto key = [&](const Value& item) {
    return sort_key(attribute ? nested(renderer, item, *attribute) : item, case_sensitive);
  };
  const Value* best = &items[0];
  for (const Value& item : items) {
    if (compare(key(item), key(*best), kMax ? ">" : "<")) best = &item;
  }
  return *best;
}

Value unique(Renderer& renderer, const Value& value, Given given) {
  const bool case_sensitive = flag_argument(given, 0, "case_sensitive", false);
  const Value* attribute = given.find(1, "attribute");
  Items kept, seen;
  for (const Value& item : renderer.items(value)) {
    Value key = sort_key(attribute ? nested(renderer, item, *attribute) : item, case_sensitive);
    renderer.step(static_cast<int64_t>(seen.size() / 8) + 1);
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) continue;
    seen.push_back(std::move(key));
    kept.push_back(item);
  }
  return Value::list(std::move(kept));
}

Value map(Renderer& renderer, const Value& value, Given given) {
  Items out;
  const Value* attribute = given.positional.empty() ? given.find(0, "attribute") : nullptr;
  if (attribute) {
    const Value* fallback = given.find(SIZE_MAX, "default");
    for (const Value& item : renderer.items(value)) {
      renderer.step();
      Value found = nested(renderer, item, *attribute);
      out.push_back(found.is_undefined() && fallback ? *fallback : std::move(found));
    }
    return Value::list(std::move(out));
  }
  if (given.positional.empty()) fail("map requires a filter argument");
  Arguments rest{{given.positional.begin() + 1, given.positional.end()}, given.named};
  const std::string name = given.positional[0].str();
  for (const Value& item : renderer.items(value)) out.push_back(renderer.filter(name, item, rest));
  return Value::list(std::move(out));
}

// select, reject, selectattr and rejectattr.
template <bool kKeep, bool kAttribute>
Value select(Renderer& renderer, const Value& value, Given given) {
  constexpr size_t kFirst = kAttribute ? 1 : 0;
  if (kAttribute && given.positional.empty()) fail("Missing parameter for attribute name");
  Items out;
  Arguments rest;
  const bool has_test = given.positional.size() > kFirst;
  if (has_test) rest.positional.assign(given.positional.begin() + kFirst + 1, given.positional.end());
  for (const Value& item : renderer.items(value)) {
    renderer.step();
    const Value subject = kAttribute ? nested(renderer, item, given.positional[0]) : item;
    const bool holds =
        has_test ? renderer.test(given.positional[kFirst].str(), subject, rest) : subject.truthy();
    if (holds == kKeep) out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value join(Renderer& renderer, const Value& value, Given given) {
  const std::string separator = text_argument(given, 0, "d", "");
  const Value* attribute = given.find(1, "attribute");
  std::string text;
  bool first = true;
  for (const Value& item : renderer.items(value)) {
    if (!first) text += separator;
    first = false;
    renderer.charge(separator.size());
    text += renderer.str(attribute && !attribute->is_none() ? nested(renderer, item, *attribute) : item);
  }
  return text;
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

Value to_int(Renderer&, const Value& value, Given given) {
  const Value* fallback = given.find(0, "default");
  const Value otherwise = fallback ? *fallback : Value(0);
  value.require_defined();
  if (value.is_integral()) return value.integer();
  double number = 0;
  if (value.is_float()) {
    number = value.number();
  } else if (value.is_string()) {
    std::string text = strip_text(value.text(), nullptr, true, true);
    int64_t whole = 0;
    const auto base = static_cast<int>(std::clamp<int64_t>(int_argument(given, 1, "base", 10), 2, 36));
    const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
    const auto parsed = std::from_chars(begin, text.data() + text.size(), whole, base);
    if (parsed.ec == std::errc() && parsed.ptr == text.data() + text.size()) return whole;
    const auto real = std::from_chars(begin, text.data() + text.size(), number);
    if (real.ec != std::errc() || real.ptr != text.data() + text.size()) return otherwise;
  } else {
    return otherwise;
  }
  if (!(std::abs(number) < 9e18)) return otherwise;
  return static_cast<int64_t>(number);
}

Value to_float(Renderer&, const Value& value, Given given) {
  const Value* fallback = given.find(0, "default");
  value.require_defined();
  if (value.is_number()) return value.number();
  if (value.is_string()) {
    const std::string text = strip_text(value.text(), nullptr, true, true);
    double number = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
    if (parsed.ec == std::errc() && parsed.ptr == text.data() + text.size()) return number;
  }
  return fallback ? *fallback : Value(0.0);
}

Value round(Renderer&, const Value& value, Given given) {
  if (!value.is_number()) fail(fmt::format("type {} doesn't define __round__ method", value.type_name()));
  const auto digits = std::clamp<int64_t>(int_argument(given, 0, "precision", 0), -300, 300);
  const std::string method = text_argument(given, 1, "method", "common");
  const double scale = std::pow(10.0, static_cast<double>(digits)), x = value.number();
  if (method == "ceil") return std::ceil(x * scale) / scale;
  if (method == "floor") return std::floor(x * scale) / scale;
  if (method != "common") fail("method must be common, ceil or floor");
  if (digits >= 0 && digits < 100)
    return std::stod(fmt::format("{:.{}f}", x, digits));  // halves to even, as Python
  return std::nearbyint(x * scale) / scale;
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

Value sum(Renderer& renderer, const Value& value, Given given) {
  const Value* attribute = given.find(0, "attribute");
  const Value* start = given.find(1, "start");
  Value total = start ? *start : Value(0);
  for (const Value& item : renderer.items(value)) {
    total =
        renderer.add(total, attribute && !attribute->is_none() ? nested(renderer, item, *attribute) : item);
  }
  return total;
}

Value reverse(Renderer& renderer, const Value& value, Given) {
  if (value.is_string()) {
    std::u32string text = to_code_points(value.text());
    std::reverse(text.begin(), text.end());
    return made(renderer, from_code_points(text));
  }
  Items items = renderer.items(value);
  std::reverse(items.begin(), items.end());
  return Value::list(std::move(items));
}

Value pairs_of(Renderer&, const Value& value, Given) {
  if (value.is_undefined()) return Value::list({});
  if (!value.is_dict()) fail("Can only get item pairs from a mapping.");
  Items items;
  for (const auto& [key, item] : value.dict().pairs) items.push_back(Value::list({key, item}, true));
  return Value::list(std::move(items));
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

const std::map<std::string, Filter, std::less<>>& filters() {
  static const std::map<std::string, Filter, std::less<>> table = {
      {"abs",
       [](Renderer&, const Value& v, Given) -> Value {
         if (v.is_integral())
           return v.integer() == INT64_MIN ? Value(-v.number()) : Value(std::abs(v.integer()));
         if (!v.is_float()) fail(fmt::format("bad operand type for abs(): '{}'", v.type_name()));
         return std::abs(v.number());
       }},
      {"attr",
       [](Renderer& r, const Value& v, Given g) -> Value {
         const std::string name = text_argument(g, 0, "name", "");
         if (v.is_dict()) {  // attributes alone, not items
           Value method = method_of(v, name);
           if (!method.is_undefined()) return method;
           return Value::undefined(fmt::format("'dict object' has no attribute '{}'", name));
         }
         return r.attribute(v, name);
       }},
      {"capitalize", [](Renderer& r, const Value& v, Given) { return made(r, capitalize_text(v.str()), v); }},
      {"default",
       [](Renderer&, const Value& v, Given g) -> Value {
         const bool use = v.is_undefined() || (flag_argument(g, 1, "boolean", false) && !v.truthy());
         const Value* fallback = g.find(0, "default_value");
         return use ? (fallback ? *fallback : Value("")) : v;
       }},
      {"dictsort", dictsort},
      {"escape", escape},
      {"first",
       [](Renderer& r, const Value& v, Given) -> Value {
         const Items items = r.items(v);
         return items.empty() ? Value::undefined("No first item, sequence was empty.") : items.front();
       }},
      {"float", to_float},
      {"format", format},
      {"indent", indent},
      {"int", to_int},
      {"items", pairs_of},
      {"join", join},
      {"last",
       [](Renderer& r, const Value& v, Given) -> Value {
         const Items items = r.items(v);
         return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
       }},
      {"length",
       [](Renderer& r, const Value& v, Given) -> Value {
         r.step(v.weight() / 8);
         return static_cast<int64_t>(v.length());
       }},
      {"list", [](Renderer& r, const Value& v, Given) { return Value::list(r.items(v)); }},
      {"lower", [](Renderer& r, const Value& v, Given) { return made(r, lower_case(v.str()), v); }},
      {"map", map},
      {"max", extreme<true>},
      {"min", extreme<false>},
      {"reject", select<false, false>},
      {"rejectattr", select<false, true>},
      {"replace", replace},
      {"reverse", reverse},
      {"round", round},
      {"safe", [](Renderer& r, const Value& v, Given) { return Value(r.str(v), true); }},
      {"select", select<true, false>},
      {"selectattr", select<true, true>},
      {"sort", sort},
      {"string", [](Renderer& r, const Value& v, Given) { return v.is_string() ? v : Value(r.str(v)); }},
      {"sum", sum},
      {"title", [](Renderer& r, const Value& v, Given) { return made(r, title_text(v.str()), v); }},
      {"tojson", tojson},
      {"trim",
       [](Renderer& r, const Value& v, Given g) -> Value {
         const Value* characters = g.find(0, "chars");
         const std::string set = characters && !characters->is_none() ? characters->str() : "";
         return made(
             r, strip_text(v.str(), characters && !characters->is_none() ? &set : nullptr, true, true), v);
       }},
      {"unique", unique},
      {"upper", [](Renderer& r, const Value& v, Given) { return made(r, upper_case(v.str()), v); }},
      {"wordcount",
       [](Renderer&, const Value& v, Given) -> Value {
         return static_cast<int64_t>(split_spaces(v.str(), -1).size());
       }},
  };
  return table;
}

const std::map<std::string, std::string, std::less<>>& filter_aliases() {
  static const std::map<std::string, std::string, std::less<>> table = {
      {"d", "default"}, {"e", "escape"}, {"count", "length"}};
  return table;
}

const Value& operand(Given given) {
  if (given.positional.empty()) fail("the test needs an argument");
  return given.positional[0];
}
int64_t integer_of(const Value& value) {
  if (!value.is_integral()) fail(fmt::format("'{}' where an integer is needed", value.type_name()));
  return value.integer();
}

const std::map<std::string, Test, std::less<>>& tests() {
  static const Test equal = [](Renderer&, const Value& v, Given g) { return v == operand(g); };
  static const Test unequal = [](Renderer&, const Value& v, Given g) { return !(v == operand(g)); };
  static const Test less = [](Renderer&, const Value& v, Given g) { return compare(v, operand(g), "<"); };
  static const Test at_most = [](Renderer&, const Value& v, Given g) { return compare(v, operand(g), "<="); };
  static const Test greater = [](Renderer&, const Value& v, Given g) { return compare(v, operand(g), ">"); };
  static const Test at_least = [](Renderer&, const Value& v, Given g) {
    return compare(v, operand(g), ">=");
  };
  static const std::map<std::string, Test, std::less<>> table = {
      {"boolean", [](Renderer&, const Value& v, Given) { return v.is_bool(); }},
      {"callable",
       [](Renderer&, const Value& v, Given) { return v.as_callable() != nullptr || v.is_undefined(); }},
      {"defined", [](Renderer&, const Value& v, Given) { return !v.is_undefined(); }},
      {"divisibleby",
       [](Renderer&, const Value& v, Given g) {
         const int64_t by = integer_of(operand(g));
         if (by == 0) fail("integer modulo by zero");
         return by == -1 || integer_of(v) % by == 0;
       }},
      {"==", equal},
      {"eq", equal},
      {"equalto", equal},
      {"!=", unequal},
      {"ne", unequal},
      {"<", less},
      {"lt", less},
      {"lessthan", less},
      {"<=", at_most},
      {"le", at_most},
      {">", greater},
      {"gt", greater},
      {"greaterthan", greater},
      {">=", at_least},
      {"ge", at_least},
      {"escaped", [](Renderer&, const Value& v, Given) { return v.is_markup(); }},
      {"even", [](Renderer&, const Value& v, Given) { return integer_of(v) % 2 == 0; }},
      {"odd", [](Renderer&, const Value& v, Given) { return integer_of(v) % 2 != 0; }},
      {"false", [](Renderer&, const Value& v, Given) { return v.is_bool() && !v.truthy(); }},
      {"true", [](Renderer&, const Value& v, Given) { return v.is_bool() && v.truthy(); }},
      {"filter", [](Renderer&, const Value& v, Given) { return v.is_string() && has_filter(v.text()); }},
      {"test", [](Renderer&, const Value& v, Given) { return v.is_string() && has_test(v.text()); }},
      {"float", [](Renderer&, const Value& v, Given) { return v.is_float(); }},
      {"in", [](Renderer&, const Value& v, Given g) { return contains(operand(g), v); }},
      {"integer", [](Renderer&, const Value& v, Given) { return v.is_int(); }},
      {"iterable",
       [](Renderer&, const Value& v, Given) {
         return v.is_string() || v.is_list() || v.is_dict() || v.is_undefined() || v.as_loop() != nullptr;
       }},
      {"lower", [](Renderer&, const Value& v, Given) { return is_lower_text(v.str()); }},
      {"upper", [](Renderer&, const Value& v, Given) { return is_upper_text(v.str()); }},
      {"mapping", [](Renderer&, const Value& v, Given) { return v.is_dict(); }},
      {"none", [](Renderer&, const Value& v, Given) { return v.is_none(); }},
      {"number", [](Renderer&, const Value& v, Given) { return v.is_number(); }},
      {"sameas",
       [](Renderer&, const Value& v, Given g) {
         const Value& other = operand(g);
         return std::string_view(v.type_name()) == other.type_name() && v == other;
       }},
      {"sequence", [](Renderer&, const Value& v,
                      Given) { return v.is_string() || v.is_list() || v.is_dict() || v.is_undefined(); }},
      {"string", [](Renderer&, const Value& v, Given) { return v.is_string(); }},
      {"undefined", [](Renderer&, const Value& v, Given) { return v.is_undefined(); }},
  };
  return table;
}

}  // namespace

bool has_filter(std::string_view name) {
  return filters().contains(name) || filter_aliases().contains(name);
}
bool has_test(std::string_view name) {
  return tests().contains(name);
}

Value Renderer::filter(const std::string& name, const Value& value, const Arguments& arguments) {
  step();
  const auto alias = filter_aliases().find(name);
  const auto found = filters().find(alias == filter_aliases().end() ? name : alias->second);
  if (found == filters().end()) fail(fmt::format("No filter named '{}' found.", name));
  return found->second(*this, value, arguments);
}

bool Renderer::test(const std::string& name, const Value& value, const Arguments& arguments) {
  step();
  const auto found = tests().find(name);
  if (found == tests().end()) fail(fmt::format("No test named '{}' found.", name));
  return found->second(*this, value, arguments);
}

std::string Renderer::time_text(const std::string& format) const {
  std::string buffer(format.size() * 16 + 256, '\0');
  if (format.size() > 1000) fail("a time format of more than 1000 bytes");
  buffer.resize(std::strftime(buffer.data(), buffer.size(), format.c_str(), &now_));
  return buffer;
}

std::map<std::string, Value> make_globals(Renderer&, std::vector<std::weak_ptr<Namespace>>& namespaces) {
  std::map<std::string, Value> globals;
  const auto add = [&](const std::string& name, std::function<Value(Renderer&, Given)> call) {
    globals[name] = std::make_shared<const Callable>(Callable{name, std::move(call)});
  };
  add("raise_exception", [](Renderer&, Given given) -> Value {
    const Value* message = given.find(0, "message");
    if (!message) fail("raise_exception() missing 1 required positional argument: 'message'");
    fail(message->str());
  });
  add("strftime_now", [](Renderer& renderer, Given given) -> Value {
    const Value* format = given.find(0, "format");
    if (!format || !format->is_string()) fail("strftime_now needs a format");
    return renderer.time_text(format->text());
  });
  const auto pairs_from = [](Given given) {
    Pairs pairs;
    if (!given.positional.empty()) {
      const Value& from = given.positional[0];
      if (from.is_dict()) {
        pairs = from.dict().pairs;
      } else {
        for (const Value& entry : from.iterate()) {
          const Items pair = entry.iterate();
          if (pair.size() != 2) fail("dict() needs pairs");
          pairs.emplace_back(pair[0], pair[1]);
        }
      }
    }
    for (const auto& [name, value] : given.named) pairs.emplace_back(name, value);
    return pairs;
  };
  add("dict", [pairs_from](Renderer&, Given given) { return Value::dict(pairs_from(given)); });
  add("namespace", [pairs_from, &namespaces](Renderer& renderer, Given given) -> Value {
    auto space = std::make_shared<Namespace>();
    const Value attributes = Value::dict(pairs_from(given));
    for (const auto& [name, value] : attributes.dict().pairs) {
      if (name.str().starts_with('_')) {
        fail(fmt::format(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got {}. "
            "Please rename the attribute.",
            name.repr()));
      }
      space->attributes.emplace_back(name.str(), value);
    }
    namespaces.push_back(space);
    return space;
  });
  add("range", [](Renderer& renderer, Given given) -> Value {
    constexpr int64_t kMostNumbers = 100'000;
    int64_t bounds[3] = {0, 0, 1};
    const size_t n = given.positional.size();
    if (n < 1 || n > 3) fail(fmt::format("range expected 1 to 3 arguments, got {}", n));
    for (size_t i = 0; i < n; ++i) {
      const Value& value = given.positional[i];
      value.require_defined();
      if (!value.is_integral())
        fail(fmt::format("'{}' object cannot be interpreted as an integer", value.type_name()));
      bounds[n == 1 ? 1 : i] = value.integer();
    }
    if (bounds[2] == 0) fail("range() arg 3 must not be zero");
    Items items;
    for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
      renderer.step();
      if (static_cast<int64_t>(items.size()) >= kMostNumbers) {
        fail(fmt::format("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).",
                         kMostNumbers));
      }
      items.emplace_back(i);
      if (__builtin_add_overflow(i, bounds[2], &i)) break;
    }
    return Value::list(std::move(items));
  });
  return globals;
}

}  // namespace flywheel::model::jinja
