// The filters of the template language by name: those of numbers and of any value, and the tables of the
// others.
#include "model/jinja_filters_internal.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "model/jinja_text.h"

namespace flywheel::model::jinja {
namespace {

Value to_int(Renderer&, const Value& value, Given given) {
  const Value* fallback = given.find(0, "default");
  Value otherwise = fallback ? *fallback : Value(0);
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
    return std::strtod(fmt::format("{:.{}f}", x, digits).c_str(), nullptr);  // halves to even, as Python
  return std::nearbyint(x * scale) / scale;
}

const Filters& value_filters() {
  static const Filters table = {
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
      {"default",
       [](Renderer&, const Value& v, Given g) -> Value {
         const bool use = v.is_undefined() || (flag_argument(g, 1, "boolean", false) && !v.truthy());
         const Value* fallback = g.find(0, "default_value");
         return use ? (fallback ? *fallback : Value("")) : v;
       }},
      {"float", to_float},
      {"int", to_int},
      {"round", round},
  };
  return table;
}

const Filters& all_filters() {
  static const Filters all = [] {
    Filters filters = value_filters();
    filters.insert(item_filters().begin(), item_filters().end());
    filters.insert(text_filters().begin(), text_filters().end());
    for (const auto& [alias, name] : {std::pair{"d", "default"}, {"e", "escape"}, {"count", "length"}}) {
      filters[alias] = filters.at(name);
    }
    return filters;
  }();
  return all;
}

}  // namespace

std::string text_argument(Given given, size_t at, std::string_view name, std::string_view fallback) {
  const Value* value = given.find(at, name);
  if (!value || value->is_none()) return std::string(fallback);
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

bool has_filter(std::string_view name) {
  return all_filters().contains(name);
}

Value Renderer::filter(const std::string& name, const Value& value, const Arguments& arguments) {
  step();
  const auto found = all_filters().find(name);
  if (found == all_filters().end()) fail(fmt::format("No filter named '{}' found.", name));
  return found->second(*this, value, arguments);
}

}  // namespace flywheel::model::jinja
