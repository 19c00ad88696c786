// The methods of strings, lists and dicts that templates may call: those of Python that change nothing.
#include <algorithm>
#include <unordered_map>

#include "model/jinja_format.h"
#include "model/jinja_text.h"
#include "model/unicode.h"

namespace flywheel::model::jinja {
namespace {

using Given = const Arguments&;
using Method = Value (*)(Renderer&, const Value& self, Given);
using Methods = std::unordered_map<std::string, Method>;

const std::string& text_at(Given given, size_t at, std::string_view name, const char* method) {
  const Value* value = given.find(at, name);
  if (!value) fail(fmt::format("{}() takes at least {} argument(s)", method, at + 1));
  value->require_defined();
  if (!value->is_string()) fail(fmt::format("{}() argument must be str, not {}", method, value->type_name()));
  return value->text();
}
int64_t int_at(Given given, size_t at, std::string_view name, int64_t fallback) {
  const Value* value = given.find(at, name);
  if (!value || value->is_none()) return fallback;
  value->require_defined();
  if (!value->is_integral())
    fail(fmt::format("'{}' object cannot be interpreted as an integer", value->type_name()));
  return value->integer();
}

Value made(Renderer& renderer, std::string text) {
  renderer.charge(text.size());
  return text;
}
Value list_of(Renderer& renderer, std::vector<std::string> parts) {
  renderer.charge(parts.size() * sizeof(Value));
  Items items;
  for (std::string& part : parts) items.emplace_back(std::move(part));
  return Value::list(std::move(items));
}

template <bool kLeft, bool kRight>
Value strip(Renderer& renderer, const Value& self, Given given) {
  const Value* set = given.find(0, "chars");
  if (!set || set->is_none()) return made(renderer, strip_text(self.text(), nullptr, kLeft, kRight));
  if (!set->is_string()) {
    set->require_defined();
    fail(fmt::format("strip arg must be None or str, not {}", set->type_name()));
  }
  renderer.step(static_cast<int64_t>(set->text().size()));
  return made(renderer, strip_text(self.text(), &set->text(), kLeft, kRight));
}

template <bool kFromRight>
Value split(Renderer& renderer, const Value& self, Given given) {
  const Value* separator = given.find(0, "sep");
  const int64_t most = int_at(given, 1, "maxsplit", -1);
  if (separator && !separator->is_none()) {
    return list_of(renderer, split_at(self.text(), text_at(given, 0, "sep", "split"), most, kFromRight));
  }
  if (!kFromRight || most < 0) return list_of(renderer, split_spaces(self.text(), most));
  fail("rsplit with a count needs a separator");
}

template <bool kEnd>
Value affixed(Renderer&, const Value& self, Given given) {
  const Value* affix = given.find(0, "prefix");
  if (!affix) fail("startswith() and endswith() take at least 1 argument");
  affix->require_defined();
  const auto matches = [&](const Value& one) {
    if (!one.is_string()) {
      fail(fmt::format("{} first arg must be str or a tuple of str, not {}", kEnd ? "endswith" : "startswith",
                       one.type_name()));
    }
    return kEnd ? self.text().ends_with(one.text()) : self.text().starts_with(one.text());
  };
  if (!affix->is_list() || !affix->list().tuple) return matches(*affix);
  return std::any_of(affix->list().items.begin(), affix->list().items.end(), matches);
}

Value join(Renderer& renderer, const Value& self, Given given) {
  if (given.positional.size() != 1) fail("join() takes exactly one argument");
  std::string out;
  size_t index = 0;
  for (const Value& item : renderer.items(given.positional[0])) {
    if (!item.is_string())
      fail(fmt::format("sequence item {}: expected str instance, {} found", index, item.type_name()));
    if (index++ > 0) out += self.text();
    renderer.charge(self.text().size() + item.text().size());
    out += item.text();
  }
  return out;
}

// find, rfind, index, rindex: positions count code points.
template <bool kRight, bool kThrows>
Value find(Renderer& renderer, const Value& self, Given given) {
  const std::string& wanted = text_at(given, 0, "sub", "find");
  renderer.step(static_cast<int64_t>(self.text().size() / 16));
  if (given.positional.size() > 1) fail("find() with a range is not supported; use a slice");
  const size_t at = kRight ? self.text().rfind(wanted) : self.text().find(wanted);
  if (at == std::string::npos) {
    if (kThrows) fail("substring not found");
    return -1;
  }
  return static_cast<int64_t>(count_code_points(std::string_view(self.text()).substr(0, at)));
}

template <bool kRight>
Value partition(Renderer& renderer, const Value& self, Given given) {
  const std::string& separator = text_at(given, 0, "sep", "partition");
  if (separator.empty()) fail("empty separator");
  const std::string& text = self.text();
  renderer.charge(text.size());
  const size_t at = kRight ? text.rfind(separator) : text.find(separator);
  if (at == std::string::npos) {
    return kRight ? Value::list({Value(""), Value(""), Value(text)}, true)
                  : Value::list({Value(text), Value(""), Value("")}, true);
  }
  return Value::list({Value(text.substr(0, at)), Value(separator), Value(text.substr(at + separator.size()))},
                     true);
}

Value split_lines(Renderer& renderer, const Value& self, Given given) {
  const Value* keep = given.find(0, "keepends");
  const bool keep_ends = keep && keep->truthy();
  const std::string& text = self.text();
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text, at);
    size_t end = at + c.size_bytes;
    const bool breaks = (c.value >= 0xA && c.value <= 0xD) || (c.value >= 0x1C && c.value <= 0x1E) ||
                        c.value == 0x85 || c.value == 0x2028 || c.value == 0x2029;
    if (breaks) {
      if (c.value == '\r' && end < text.size() && text[end] == '\n') ++end;
      lines.push_back(text.substr(begin, (keep_ends ? end : at) - begin));
      begin = end;
    }
    at = end;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return list_of(renderer, std::move(lines));
}

// isdigit and its like: all characters, and at least one.
template <uint16_t kClasses>
Value all_are(Renderer&, const Value& self, Given) {
  const std::u32string text = to_code_points(self.text());
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char32_t c) { return has_class(c, kClasses); });
}

const Methods& string_methods() {
  static const Methods table = {
      {"capitalize", [](Renderer& r, const Value& s, Given) { return made(r, capitalize_text(s.text())); }},
      {"casefold", [](Renderer& r, const Value& s, Given) { return made(r, lower_case(s.text())); }},
      {"count",
       [](Renderer&, const Value& s, Given g) -> Value {
         const std::string& wanted = text_at(g, 0, "sub", "count");
         if (wanted.empty()) return static_cast<int64_t>(s.length()) + 1;
         int64_t count = 0;
         for (size_t at = s.text().find(wanted); at != std::string::npos;
              at = s.text().find(wanted, at + wanted.size()))
           ++count;
         return count;
       }},
      {"endswith", affixed<true>},
      {"find", find<false, false>},
      {"format", [](Renderer& r, const Value& s, Given g) { return Value(brace_format(r, s.text(), g)); }},
      {"index", find<false, true>},
      {"isalnum", all_are<kLetter | kNumber>},
      {"isalpha", all_are<kLetter>},
      {"isdecimal", all_are<kDecimal>},
      {"isdigit", all_are<kDecimal>},
      {"islower", [](Renderer&, const Value& s, Given) { return Value(is_lower_text(s.text())); }},
      {"isnumeric", all_are<kNumber>},
      {"isspace", all_are<kSpace>},
      {"isupper", [](Renderer&, const Value& s, Given) { return Value(is_upper_text(s.text())); }},
      {"join", join},
      {"lower", [](Renderer& r, const Value& s, Given) { return made(r, lower_case(s.text())); }},
      {"lstrip", strip<true, false>},
      {"partition", partition<false>},
      {"removeprefix",
       [](Renderer& r, const Value& s, Given g) {
         const std::string& prefix = text_at(g, 0, "prefix", "removeprefix");
         return s.text().starts_with(prefix) ? made(r, s.text().substr(prefix.size())) : s;
       }},
      {"removesuffix",
       [](Renderer& r, const Value& s, Given g) {
         const std::string& suffix = text_at(g, 0, "suffix", "removesuffix");
         return s.text().ends_with(suffix) ? made(r, s.text().substr(0, s.text().size() - suffix.size())) : s;
       }},
      {"replace",
       [](Renderer& r, const Value& s, Given g) {
         return made(r, replace_text(r, s.text(), text_at(g, 0, "old", "replace"),
                                     text_at(g, 1, "new", "replace"), int_at(g, 2, "count", -1)));
       }},
      {"rfind", find<true, false>},
      {"rindex", find<true, true>},
      {"rpartition", partition<true>},
      {"rsplit", split<true>},
      {"rstrip", strip<false, true>},
      {"split", split<false>},
      {"splitlines", split_lines},
      {"startswith", affixed<false>},
      {"strip", strip<true, true>},
      {"title", [](Renderer& r, const Value& s, Given) { return made(r, title_text(s.text())); }},
      {"upper", [](Renderer& r, const Value& s, Given) { return made(r, upper_case(s.text())); }},
      {"zfill",
       [](Renderer& r, const Value& s, Given g) {
         const auto width = static_cast<size_t>(std::clamp<int64_t>(int_at(g, 0, "width", 0), 0, 100'000));
         const size_t sign = s.text().starts_with('-') || s.text().starts_with('+') ? 1 : 0,
                      size = s.length();
         std::string zeros(width > size ? width - size : 0, '0');
         return made(r, s.text().substr(0, sign) + zeros + s.text().substr(sign));
       }},
  };
  return table;
}

const Methods& dict_methods() {
  static const Methods table = {
      {"copy", [](Renderer&, const Value& s, Given) { return s; }},
      {"get",
       [](Renderer&, const Value& s, Given g) {
         const Value* key = g.find(0, "key");
         if (!key) fail("get expected at least 1 argument, got 0");
         if (const Value* found = s.dict().find(*key)) return *found;
         const Value* fallback = g.find(1, "default");
         return fallback ? *fallback : Value::none();
       }},
      {"items", [](Renderer& r, const Value& s, Given g) { return r.filter("items", s, g); }},
      {"keys", [](Renderer& r, const Value& s, Given) { return Value::list(r.items(s)); }},
      {"values",
       [](Renderer& r, const Value& s, Given) {
         Items items;
         r.charge(s.length() * sizeof(Value));
         for (const auto& [key, item] : s.dict().pairs) items.push_back(item);
         return Value::list(std::move(items));
       }},
  };
  return table;
}

const Methods& list_methods() {
  static const Methods table = {
      {"copy", [](Renderer&, const Value& s, Given) { return s; }},
      {"count",
       [](Renderer& r, const Value& s, Given g) -> Value {
         if (g.positional.size() != 1) fail("count() takes exactly one argument");
         r.step(s.weight() / 8);
         const Items& items = s.list().items;
         return static_cast<int64_t>(std::count(items.begin(), items.end(), g.positional[0]));
       }},
      {"index",
       [](Renderer& r, const Value& s, Given g) -> Value {
         if (g.positional.size() != 1) fail("index() takes exactly one argument");
         r.step(s.weight() / 8);
         const Items& items = s.list().items;
         const auto found = std::find(items.begin(), items.end(), g.positional[0]);
         if (found == items.end()) fail(g.positional[0].repr() + " is not in list");
         return static_cast<int64_t>(found - items.begin());
       }},
  };
  return table;
}

}  // namespace

Value method_of(const Value& object, const std::string& name) {
  if (object.is_float() && name == "is_integer") {
    const double x = object.number();
    return std::make_shared<const Callable>(Callable{
        name, [x](Renderer&, Given) -> Value { return x == static_cast<double>(static_cast<int64_t>(x)); }});
  }
  if (!object.is_string() && !object.is_dict() && !object.is_list()) return Value();
  const Methods& table = object.is_string() ? string_methods()
                         : object.is_dict() ? dict_methods()
                                            : list_methods();
  const auto found = table.find(name);
  if (found == table.end() || (object.is_list() && object.list().tuple && name == "copy")) return Value();
  return std::make_shared<const Callable>(
      Callable{name, [object, method = found->second](Renderer& renderer, Given given) {
                 return method(renderer, object, given);
               }});
}

}  // namespace flywheel::model::jinja
