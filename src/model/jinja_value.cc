#include "model/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "model/unicode.h"

namespace flywheel::model::jinja {
namespace {

int checked_depth(int depth) {
  if (depth > kMostDepth) fail(fmt::format("a value is nested deeper than {}", kMostDepth));
  return depth;
}

int64_t checked_weight(int64_t weight) {
  if (weight > kMostWeight) fail("a value is too large");
  return weight;
}

std::string python_quoted(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text, at);
    if (c.value == static_cast<char32_t>(quote) || c.value == '\\') {
      out += '\\';
      out += static_cast<char>(c.value);
    } else if (c.value == '\n') {
      out += "\\n";
    } else if (c.value == '\r') {
      out += "\\r";
    } else if (c.value == '\t') {
      out += "\\t";
    } else if (c.value < 0x20 || c.value == 0x7F) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c.value));
    } else if (c.value >= 0x80 && (has_class(c.value, kControl) || (has_class(c.value, kSpace)))) {
      const auto code = static_cast<uint32_t>(c.value);
      out += code < 0x100     ? fmt::format("\\x{:02x}", code)
             : code < 0x10000 ? fmt::format("\\u{:04x}", code)
                              : fmt::format("\\U{:08x}", code);
    } else {
      out += text.substr(at, c.size_bytes);
    }
    at += c.size_bytes;
  }
  return out + quote;
}

}  // namespace

const Value* Arguments::find(size_t position, std::string_view name) const {
  if (position < positional.size()) return &positional[position];
  for (const auto& [given, value] : named) {
    if (given == name) return &value;
  }
  return nullptr;
}

const Value* Dict::find(const Value& key) const {
  for (const auto& [k, value] : pairs) {
    if (k == key) return &value;
  }
  return nullptr;
}

const Value* Dict::find(std::string_view key) const {
  for (const auto& [k, value] : pairs) {
    if (k.is_string() && k.text() == key) return &value;
  }
  return nullptr;
}

Value Value::none() {
  Value value;
  value.state_ = std::monostate{};
  return value;
}

Value Value::undefined(std::string why) {
  return Undefined{std::make_shared<const std::string>(std::move(why))};
}

Value Value::list(Items items, bool tuple) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) {
    list->depth = std::max(list->depth, checked_depth(item.depth() + 1));
    list->weight = checked_weight(list->weight + item.weight());
  }
  list->items = std::move(items);
  list->tuple = tuple;
  Value value;
  value.state_ = std::shared_ptr<const List>(std::move(list));
  return value;
}

Value Value::dict(Pairs pairs) {
  auto dict = std::make_shared<Dict>();
  for (auto& [key, item] : pairs) {
    if (key.is_list() && !key.list().tuple) fail("unhashable type: 'list'");
    if (key.is_dict()) fail("unhashable type: 'dict'");
    dict->depth = std::max({dict->depth, checked_depth(item.depth() + 1), checked_depth(key.depth() + 1)});
    dict->weight = checked_weight(dict->weight + key.weight() + item.weight());
    if (const Value* known = dict->find(key)) {
      *const_cast<Value*>(known) = std::move(item);  // this dict is still ours alone
    } else {
      dict->pairs.emplace_back(std::move(key), std::move(item));
    }
  }
  Value value;
  value.state_ = std::shared_ptr<const Dict>(std::move(dict));
  return value;
}

Value Value::from_json(const OrderedJson& json) {
  if (json.is_null()) return none();
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX)
    return static_cast<double>(json.get<uint64_t>());
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number_float()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array()) {
    Items items;
    for (const OrderedJson& item : json) items.push_back(from_json(item));
    return list(std::move(items));
  }
  auto dict = std::make_shared<Dict>();  // keys are unique already
  for (const auto& [key, item] : json.items()) {
    dict->pairs.emplace_back(key, from_json(item));
    const Value& held = dict->pairs.back().second;
    dict->depth = std::max(dict->depth, checked_depth(held.depth() + 1));
    dict->weight = checked_weight(dict->weight + static_cast<int64_t>(key.size()) / 16 + 1 + held.weight());
  }
  Value value;
  value.state_ = std::shared_ptr<const Dict>(std::move(dict));
  return value;
}

int64_t Value::integer() const {
  return is_bool() ? std::get<bool>(state_) : std::get<int64_t>(state_);
}
double Value::number() const {
  return is_float() ? std::get<double>(state_) : static_cast<double>(integer());
}
std::shared_ptr<Namespace> Value::as_namespace() const {
  const auto* held = std::get_if<std::shared_ptr<Namespace>>(&state_);
  return held ? *held : nullptr;
}
std::shared_ptr<Loop> Value::as_loop() const {
  const auto* held = std::get_if<std::shared_ptr<Loop>>(&state_);
  return held ? *held : nullptr;
}
std::shared_ptr<const Callable> Value::as_callable() const {
  const auto* held = std::get_if<std::shared_ptr<const Callable>>(&state_);
  return held ? *held : nullptr;
}

void Value::require_defined() const {
  if (!is_undefined()) return;
  const auto& why = std::get<Undefined>(state_).why;
  fail(why ? *why : "a value is undefined");
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return number() != 0;
  if (is_string()) return !text().empty();
  if (is_list()) return !list().items.empty();
  if (is_dict()) return !dict().pairs.empty();
  return true;
}

std::string Value::str() const {
  if (is_undefined()) return "";
  return is_string() ? text() : repr();
}

std::string Value::repr() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "None";
  if (is_bool()) return integer() ? "True" : "False";
  if (is_int()) return std::to_string(integer());
  if (is_float()) return float_repr(number());
  if (is_string()) return is_markup() ? "Markup(" + python_quoted(text()) + ")" : python_quoted(text());
  std::string out;
  if (is_list()) {
    const List& all = list();
    for (const Value& item : all.items) out += (out.empty() ? "" : ", ") + item.repr();
    if (all.tuple) return "(" + out + (all.items.size() == 1 ? ",)" : ")");
    return "[" + out + "]";
  }
  if (is_dict()) {
    for (const auto& [key, item] : dict().pairs) {
      out += (out.empty() ? "" : ", ") + key.repr() + ": " + item.repr();
    }
    return "{" + out + "}";
  }
  if (const auto callable = as_callable()) return "<function " + callable->name + ">";
  return as_loop() ? "<LoopContext>" : "<Namespace>";
}

const char* Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_string()) return is_markup() ? "Markup" : "str";
  if (is_list()) return list().tuple ? "tuple" : "list";
  if (is_dict()) return "dict";
  if (as_namespace()) return "Namespace";
  return as_loop() ? "LoopContext" : "function";
}

int Value::depth() const {
  return is_list() ? list().depth : is_dict() ? dict().depth : 0;
}

int64_t Value::weight() const {
  if (is_list()) return list().weight;
  if (is_dict()) return dict().weight;
  return is_string() ? 1 + static_cast<int64_t>(text().size()) / 16 : 1;
}

size_t Value::length() const {
  if (is_undefined()) return 0;
  if (is_string()) return count_code_points(text());
  if (is_list()) return list().items.size();
  if (is_dict()) return dict().pairs.size();
  if (const auto loop = as_loop()) return loop->items.size();
  fail(fmt::format("object of type '{}' has no len()", type_name()));
}

Items Value::iterate() const {
  Items items;
  if (is_undefined()) return items;
  if (is_list()) return list().items;
  if (is_dict()) {
    for (const auto& [key, item] : dict().pairs) items.push_back(key);
  } else if (is_string()) {
    const std::string& all = text();
    for (size_t at = 0; at < all.size();) {
      const size_t size = decode_utf8(all, at).size_bytes;
      items.emplace_back(all.substr(at, size));
      at += size;
    }
  } else {
    fail(fmt::format("'{}' object is not iterable", type_name()));
  }
  return items;
}

bool Value::operator==(const Value& other) const {
  if (is_number() && other.is_number()) {
    if (is_integral() && other.is_integral()) return integer() == other.integer();
    return number() == other.number();
  }
  if (is_string() && other.is_string()) return text() == other.text();
  if (is_list() && other.is_list()) {
    return list().tuple == other.list().tuple && list().items == other.list().items;
  }
  if (is_dict() && other.is_dict()) {
    if (dict().pairs.size() != other.dict().pairs.size()) return false;
    return std::all_of(dict().pairs.begin(), dict().pairs.end(), [&](const auto& pair) {
      const Value* found = other.dict().find(pair.first);
      return found && *found == pair.second;
    });
  }
  if (const auto space = as_namespace()) return space == other.as_namespace();
  if (const auto callable = as_callable()) return callable == other.as_callable();
  return (is_none() && other.is_none()) || (is_undefined() && other.is_undefined());
}

bool compare(const Value& a, const Value& b, std::string_view op) {
  a.require_defined();
  b.require_defined();
  const auto decide = [&](const auto& x, const auto& y) {
    return op == "<" ? x < y : op == "<=" ? x <= y : op == ">" ? x > y : x >= y;
  };
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return decide(a.integer(), b.integer());
    return decide(a.number(), b.number());
  }
  if (a.is_string() && b.is_string()) return decide(a.text(), b.text());
  if (a.is_list() && b.is_list() && a.list().tuple == b.list().tuple) {
    const Items &x = a.list().items, &y = b.list().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!(x[i] == y[i])) return compare(x[i], y[i], op);
    }
    return decide(x.size(), y.size());
  }
  fail(
      fmt::format("'{}' not supported between instances of '{}' and '{}'", op, a.type_name(), b.type_name()));
}

bool contains(const Value& container, const Value& item) {
  if (container.is_undefined()) return false;
  if (container.is_string()) {
    if (!item.is_string()) {
      item.require_defined();
      fail(fmt::format("'in <string>' requires string as left operand, not {}", item.type_name()));
    }
    return container.text().find(item.text()) != std::string::npos;
  }
  if (container.is_dict()) return container.dict().find(item) != nullptr;
  if (container.is_list()) {
    const Items& items = container.list().items;
    return std::find(items.begin(), items.end(), item) != items.end();
  }
  fail(fmt::format("argument of type '{}' is not iterable", container.type_name()));
}

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view text(buffer, static_cast<size_t>(end - buffer));
  const size_t e = text.find('e');
  int exponent = 0;
  const char* digits_of_exponent = text.data() + e + (text[e + 1] == '+' ? 2 : 1);
  std::from_chars(digits_of_exponent, end, exponent);
  if (exponent < -4 || exponent >= 16) return std::string(text);  // "1e+16", "1.5e-07": the same in Python
  std::string fixed(buffer,
                    std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

std::u32string to_code_points(std::string_view text) {
  std::u32string out;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text, at);
    out += c.value;
    at += c.size_bytes;
  }
  return out;
}

std::string from_code_points(std::u32string_view text) {
  std::string out;
  for (const char32_t c : text) append_utf8(out, c);
  return out;
}

}  // namespace flywheel::model::jinja
