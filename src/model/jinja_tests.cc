// The tests of the template language: `is defined`, `is mapping`, ...
#include <map>

#include "model/jinja_render.h"
#include "model/jinja_text.h"

namespace flywheel::model::jinja {
namespace {

using Given = const Arguments&;
using Test = bool (*)(Renderer&, const Value&, Given);

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

bool has_test(std::string_view name) {
  return tests().contains(name);
}

bool Renderer::test(const std::string& name, const Value& value, const Arguments& arguments) {
  step();
  const auto found = tests().find(name);
  if (found == tests().end()) fail(fmt::format("No test named '{}' found.", name));
  return found->second(*this, value, arguments);
}

}  // namespace flywheel::model::jinja
