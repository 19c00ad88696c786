// Expressions of the template language: operators, attributes, subscripts, calls.
#include <algorithm>
#include <cmath>

#include "model/jinja_format.h"
#include "model/jinja_render.h"

namespace flywheel::model::jinja {
namespace {

// "dict object", as Jinja names objects in its messages.
std::string object_name(const Value& value) {
  if (value.is_none()) return "None";
  if (value.as_namespace()) return "jinja2.utils.Namespace object";
  return std::string(value.type_name()) + " object";
}

// Where Python's subscript with this index points; nullopt outside.
std::optional<size_t> position(int64_t index, size_t size) {
  if (index < 0) index += static_cast<int64_t>(size);
  if (index < 0 || index >= static_cast<int64_t>(size)) return std::nullopt;
  return static_cast<size_t>(index);
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

Value loop_attribute(const std::shared_ptr<Loop>& loop, const std::string& name) {
  const auto index = static_cast<int64_t>(loop->index), size = static_cast<int64_t>(loop->items.size());
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return size - index;
  if (name == "revindex0") return size - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index + 1 == size;
  if (name == "length") return size;
  if (name == "depth") return int64_t{loop->depth};
  if (name == "depth0") return int64_t{loop->depth - 1};
  if (name == "previtem") {
    return index > 0 ? loop->items[loop->index - 1] : Value::undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return index + 1 < size ? loop->items[loop->index + 1] : Value::undefined("there is no next item");
  }
  if (name == "cycle") {
    return std::make_shared<const Callable>(
        Callable{"cycle", [loop](Renderer&, const Arguments& given) -> Value {
                   if (given.positional.empty()) fail("no items for cycling given");
                   return given.positional[loop->index % given.positional.size()];
                 }});
  }
  if (name == "changed") {
    return std::make_shared<const Callable>(
        Callable{"changed", [loop](Renderer&, const Arguments& given) -> Value {
                   Value now = Value::list(given.positional, true);
                   if (loop->last_changed && *loop->last_changed == now) return false;
                   loop->last_changed = std::make_shared<Value>(std::move(now));
                   return true;
                 }});
  }
  return Value::undefined(fmt::format("'jinja2.runtime.LoopContext object' has no attribute '{}'", name));
}

}  // namespace

Value Renderer::eval(const Expr& expr) {
  step();
  line_ = expr.line;
  const auto child = [&](size_t i) { return eval(*expr.children[i]); };
  switch (expr.kind) {
    case ExprKind::kConst:
      return expr.value;
    case ExprKind::kName:
      return lookup(expr.text);
    case ExprKind::kList:
    case ExprKind::kTuple: {
      Items items;
      for (const ExprPtr& item : expr.children) items.push_back(eval(*item));
      return Value::list(std::move(items), expr.kind == ExprKind::kTuple);
    }
    case ExprKind::kDict: {
      Pairs pairs;
      for (size_t i = 0; i < expr.children.size(); i += 2) {
        Value key = child(i);
        pairs.emplace_back(std::move(key), child(i + 1));
      }
      return Value::dict(std::move(pairs));
    }
    case ExprKind::kAttr:
      return attribute(child(0), expr.text);
    case ExprKind::kItem: {
      const Value object = child(0);
      return item(object, child(1));
    }
    case ExprKind::kSlice:
      return slice(expr);
    case ExprKind::kCall: {
      const Value function = child(0);
      return call(function, arguments_of(expr));
    }
    case ExprKind::kFilter:
      return apply_filter(expr, Value());
    case ExprKind::kTest: {
      const Value value = child(0);
      return test(expr.text, value, arguments_of(expr));
    }
    case ExprKind::kNegate:
      return arithmetic("-", int64_t{0}, child(0));
    case ExprKind::kPlus:
      return arithmetic("+", int64_t{0}, child(0));
    case ExprKind::kNot:
      return !child(0).truthy();
    case ExprKind::kAnd: {
      Value left = child(0);
      return left.truthy() ? child(1) : left;
    }
    case ExprKind::kOr: {
      Value left = child(0);
      return left.truthy() ? left : child(1);
    }
    case ExprKind::kBinary: {
      const Value left = child(0);
      return binary(expr.text, left, child(1));
    }
    case ExprKind::kConcat: {
      std::string text;
      for (const ExprPtr& part : expr.children) {
        text += str(eval(*part));
      }
      return text;
    }
    case ExprKind::kCompare:
      return compare_chain(expr);
    case ExprKind::kIfElse: {
      if (child(1).truthy()) return child(0);
      if (expr.children[2]) return child(2);
      return Value::undefined("the inline if-expression evaluated to false and no else section was defined.");
    }
  }
  return Value();
}

Value Renderer::compare_chain(const Expr& expr) {
  Value left = eval(*expr.children[0]);
  for (size_t i = 0; i < expr.ops.size(); ++i) {
    const std::string& op = expr.ops[i];
    Value right = eval(*expr.children[i + 1]);
    step((left.weight() + right.weight()) / 8);
    bool holds = false;
    if (op == "==") {
      holds = left == right;
    } else if (op == "!=") {
      holds = !(left == right);
    } else if (op == "in") {
      holds = contains(right, left);
    } else if (op == "not in") {
      holds = !contains(right, left);
    } else {
      holds = compare(left, right, op);
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Renderer::binary(const std::string& op, const Value& a, const Value& b) {
  if (op == "+") return add(a, b);
  if (op == "*") return multiply(a, b);
  if (op == "%" && a.is_string()) {
    std::string text = percent_format(*this, a.text(), b);
    charge(text.size());
    return text;
  }
  return arithmetic(op, a, b);
}

Value Renderer::add(const Value& a, const Value& b) {
  a.require_defined();
  b.require_defined();
  if (a.is_string() && b.is_string()) {
    const bool markup = a.is_markup() || b.is_markup();
    std::string text = markup && !a.is_markup() ? escape_html(a.text()) : a.text();
    text += markup && !b.is_markup() ? escape_html(b.text()) : b.text();
    charge(text.size());
    return Value(std::move(text), markup);
  }
  if (a.is_list() && b.is_list() && a.list().tuple == b.list().tuple) {
    step(static_cast<int64_t>(a.length() + b.length()));
    charge((a.length() + b.length()) * sizeof(Value));
    Items items = a.list().items;
    items.insert(items.end(), b.list().items.begin(), b.list().items.end());
    return Value::list(std::move(items), a.list().tuple);
  }
  if (a.is_string()) fail(fmt::format("can only concatenate str (not \"{}\") to str", b.type_name()));
  if (a.is_list()) {
    fail(fmt::format("can only concatenate {0} (not \"{1}\") to {0}", a.type_name(), b.type_name()));
  }
  return arithmetic("+", a, b);
}

Value Renderer::multiply(const Value& a, const Value& b) {
  a.require_defined();
  b.require_defined();
  const bool swapped = !(a.is_string() || a.is_list());
  const Value &sequence = swapped ? b : a, &times = swapped ? a : b;
  if ((sequence.is_string() || sequence.is_list()) && times.is_integral()) {
    const auto count = static_cast<size_t>(std::max<int64_t>(0, times.integer()));
    const size_t unit = sequence.is_string() ? sequence.text().size() : sequence.length() * sizeof(Value);
    if (unit > 0 && count > limits_.output_bytes / unit) charge(limits_.output_bytes + 1);
    charge(unit * count);
    if (unit == 0) return sequence;
    if (sequence.is_string()) {
      std::string text;
      for (size_t i = 0; i < count; ++i) text += sequence.text();
      return Value(std::move(text), sequence.is_markup());
    }
    Items items;
    for (size_t i = 0; i < count; ++i) {
      items.insert(items.end(), sequence.list().items.begin(), sequence.list().items.end());
    }
    return Value::list(std::move(items), sequence.list().tuple);
  }
  if (sequence.is_string() || sequence.is_list()) {
    fail(fmt::format("can't multiply sequence by non-int of type '{}'", times.type_name()));
  }
  return arithmetic("*", a, b);
}

Value Renderer::arithmetic(const std::string& op, const Value& a, const Value& b) {
  a.require_defined();
  b.require_defined();
  if (!a.is_number() || !b.is_number()) {
    fail(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", op, a.type_name(), b.type_name()));
  }
  const bool divides = op == "/" || op == "//" || op == "%";
  if (divides && b.number() == 0) fail(op == "/" ? "division by zero" : "integer division or modulo by zero");
  if (a.is_integral() && b.is_integral() && op != "/") {
    const int64_t x = a.integer(), y = b.integer();
    int64_t result = 0;
    bool overflow = false;
    if (op == "+") overflow = __builtin_add_overflow(x, y, &result);
    if (op == "-") overflow = __builtin_sub_overflow(x, y, &result);
    if (op == "*") overflow = __builtin_mul_overflow(x, y, &result);
    if (op == "//" || op == "%") {
      if (x == INT64_MIN && y == -1) {
        overflow = op == "//";
      } else {
        const int64_t quotient = x / y - ((x % y != 0 && (x < 0) != (y < 0)) ? 1 : 0);
        result = op == "//" ? quotient : x - quotient * y;
      }
    }
    if (op == "**") {
      if (y < 0) return std::pow(static_cast<double>(x), static_cast<double>(y));
      result = 1;
      for (int64_t i = 0; i < y && !overflow; ++i) {
        step();
        overflow = __builtin_mul_overflow(result, x, &result);
      }
    }
    if (overflow) fail("an integer of more than 64 bits");
    return result;
  }
  const double x = a.number(), y = b.number();
  if (op == "+") return x + y;
  if (op == "-") return x - y;
  if (op == "*") return x * y;
  if (op == "/") return x / y;
  if (op == "//") return std::floor(x / y);
  if (op == "**") return std::pow(x, y);
  const double rest = std::fmod(x, y);
  return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}

Value Renderer::attribute(const Value& object, const std::string& name) {
  object.require_defined();
  if (const auto loop = object.as_loop()) return loop_attribute(loop, name);
  if (const auto space = object.as_namespace()) {
    for (const auto& [known, value] : space->attributes) {
      if (known == name) return value;
    }
    return Value::undefined(fmt::format("'{}' has no attribute '{}'", object_name(object), name));
  }
  // Python looks for methods first, then for items.
  Value method = method_of(object, name);
  if (!method.is_undefined()) return method;
  if (object.is_dict()) {
    if (const Value* found = object.dict().find(std::string_view(name))) return *found;
  }
  if (const auto callable = object.as_callable(); callable && name == "name") return callable->name;
  static const char* const kListChanges[] = {"append", "clear", "pop",    "reverse",
                                             "insert", "sort",  "extend", "remove"};
  static const char* const kDictChanges[] = {"clear", "pop", "popitem", "setdefault", "update"};
  const auto listed = [&](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  if ((object.is_list() && !object.list().tuple && listed(kListChanges)) ||
      (object.is_dict() && listed(kDictChanges)) || name.starts_with("__")) {
    return Value::undefined(
        fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, object.type_name()));
  }
  return Value::undefined(fmt::format("'{}' has no attribute '{}'", object_name(object), name));
}

Value Renderer::item(const Value& object, const Value& key) {
  object.require_defined();
  if (object.is_dict()) {
    if (const Value* found = object.dict().find(key)) return *found;
  } else if (key.is_integral() && (object.is_list() || object.is_string())) {
    if (object.is_list()) {
      const Items& items = object.list().items;
      if (const auto at = position(key.integer(), items.size())) return items[*at];
    } else {
      const std::u32string text = to_code_points(object.text());
      step(static_cast<int64_t>(text.size() / 16));
      if (const auto at = position(key.integer(), text.size()))
        return from_code_points({text.data() + *at, 1});
    }
    return Value::undefined(fmt::format("{} has no element {}", object_name(object), key.repr()));
  }
  if (key.is_string()) {
    if (object.as_namespace() || object.as_loop() || !object.is_dict()) return attribute(object, key.text());
    Value method = method_of(object, key.text());
    if (!method.is_undefined()) return method;
    return Value::undefined(fmt::format("'{}' has no attribute '{}'", object_name(object), key.text()));
  }
  return Value::undefined(fmt::format("{} has no element {}", object_name(object), key.repr()));
}

Value Renderer::slice(const Expr& expr) {
  const Value object = eval(*expr.children[0]);
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    bounds[i] = expr.children[i + 1] ? eval(*expr.children[i + 1]) : Value::none();
    if (!bounds[i].is_none() && !bounds[i].is_integral()) {
      bounds[i].require_defined();
      fail("slice indices must be integers or None or have an __index__ method");
    }
  }
  object.require_defined();
  if (!object.is_string() && !object.is_list()) {
    fail(fmt::format("'{}' object is not subscriptable", object.type_name()));
  }
  const std::u32string text = object.is_string() ? to_code_points(object.text()) : U"";
  const auto size = static_cast<int64_t>(object.is_string() ? text.size() : object.list().items.size());
  step(size / 16);
  const int64_t stride = bounds[2].is_none() ? 1 : bounds[2].integer();
  if (stride == 0) fail("slice step cannot be zero");
  const auto bound = [&](const Value& value, int64_t fallback) {
    if (value.is_none()) return fallback;
    int64_t at = value.integer();
    if (at < 0) at = std::max(at + size, stride < 0 ? int64_t{-1} : int64_t{0});
    return std::min(at, stride < 0 ? size - 1 : size);
  };
  const int64_t start = bound(bounds[0], stride < 0 ? size - 1 : 0);
  const int64_t stop = bound(bounds[1], stride < 0 ? -1 : size);
  std::u32string cut;
  Items items;
  for (int64_t i = start; stride > 0 ? i < stop : i > stop;) {
    if (object.is_string()) {
      cut += text[static_cast<size_t>(i)];
    } else {
      items.push_back(object.list().items[static_cast<size_t>(i)]);
    }
    if (__builtin_add_overflow(i, stride, &i)) break;
  }
  if (object.is_list()) return Value::list(std::move(items), object.list().tuple);
  std::string result = from_code_points(cut);
  charge(result.size());
  return result;
}

}  // namespace flywheel::model::jinja
