#include "model/jinja_render.h"

#include <algorithm>
#include <cmath>

#include "model/unicode.h"

namespace flywheel::model::jinja {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw JinjaError(message);
}

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

Value* Renderer::Scope::find(const std::string& name) {
  for (Scope* scope = this; scope; scope = scope->parent) {
    for (auto& [known, value] : scope->variables) {
      if (known == name) return &value;
    }
  }
  return nullptr;
}

void Renderer::Scope::set(const std::string& name, Value value) {
  for (auto& [known, held] : variables) {
    if (known == name) {
      held = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

// A scope for the time of one statement; a captured one is kept until the end.
class Renderer::InScope {
 public:
  InScope(Renderer& renderer, Scope* parent) : renderer_(renderer), before_(renderer.scope_) {
    auto scope = std::make_unique<Scope>();
    scope->parent = parent;
    renderer.scope_ = scope.get();
    renderer.scopes_.push_back(std::move(scope));
  }
  ~InScope() {
    Scope* mine = renderer_.scope_;
    renderer_.scope_ = before_;
    // Captured scopes stay in the list; others are the last one in it, unless captured ones follow.
    if (!mine->captured && renderer_.scopes_.back().get() == mine) renderer_.scopes_.pop_back();
  }
  InScope(const InScope&) = delete;
  InScope& operator=(const InScope&) = delete;

 private:
  Renderer& renderer_;
  Scope* before_;
};

Renderer::~Renderer() {
  for (const auto& weak : namespaces_) {
    if (const auto space = weak.lock()) space->attributes.clear();
  }
}

std::string Renderer::render(const Body& body, const std::vector<std::pair<std::string, Value>>& variables) {
  std::string out;
  out_ = &out;
  globals_ = make_globals(*this, namespaces_);
  const InScope context(*this, nullptr);
  for (const auto& [name, value] : variables) scope_->set(name, value);
  const InScope top(*this, scope_);
  try {
    run(body);
  } catch (JinjaError& error) {
    if (error.line == 0) error.line = line_;
    throw;
  }
  return out;
}

void Renderer::step(int64_t count) {
  const int64_t before = steps_;
  steps_ += count;
  if (steps_ > limits_.steps) fail(fmt::format("the template takes more than {} steps", limits_.steps));
  if ((before >> 12) != (steps_ >> 12) && limits_.deadline.expired()) fail("the template takes too long");
}

void Renderer::charge(size_t bytes) {
  bytes_ += bytes;
  if (bytes > limits_.output_bytes || bytes_ > limits_.output_bytes) {
    fail(fmt::format("the template makes more than {} bytes of text", limits_.output_bytes));
  }
}

Items Renderer::items(const Value& value) {
  const size_t count = value.is_string()                    ? value.text().size()
                       : value.is_list() || value.is_dict() ? value.length()
                                                            : 0;
  charge(count * sizeof(Value));
  step(static_cast<int64_t>(count / 8));
  return value.iterate();
}

std::string Renderer::str(const Value& value) {
  step(value.weight() / 8);
  std::string text = value.str();
  charge(text.size());
  return text;
}

void Renderer::print(std::string_view text) {
  charge(text.size());
  out_->append(text);
}

std::string Renderer::capture(const Body& body, Flow* flow) {
  std::string text;
  std::string* before = std::exchange(out_, &text);
  try {
    const Flow result = run(body);
    if (flow) *flow = result;
  } catch (...) {
    out_ = before;
    throw;
  }
  out_ = before;
  return text;
}

Renderer::Flow Renderer::run(const Body& body) {
  for (const auto& stmt : body) {
    const Flow flow = run(*stmt);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Renderer::Flow Renderer::run(const Stmt& stmt) {
  step();
  line_ = stmt.line;
  switch (stmt.kind) {
    case StmtKind::kText:
      print(stmt.text);
      return Flow::kNext;
    case StmtKind::kPrint: {
      const Value value = eval(*stmt.expr);
      print(value.is_string() ? value.text() : str(value));
      return Flow::kNext;
    }
    case StmtKind::kSet:
      assign(*stmt.target, eval(*stmt.expr));
      return Flow::kNext;
    case StmtKind::kSetBlock: {
      Value text;
      {
        const InScope scope(*this, scope_);
        text = capture(stmt.body);
        if (stmt.filter) text = apply_filter(*stmt.filter, text);
      }
      assign(*stmt.target, std::move(text));
      return Flow::kNext;
    }
    case StmtKind::kIf:
      return run(eval(*stmt.expr).truthy() ? stmt.body : stmt.other);
    case StmtKind::kFor:
      return run_for(stmt);
    case StmtKind::kMacro:
      run_macro(stmt);
      return Flow::kNext;
    case StmtKind::kCallBlock:
      run_call_block(stmt);
      return Flow::kNext;
    case StmtKind::kFilterBlock: {
      const InScope scope(*this, scope_);
      print(str(apply_filter(*stmt.filter, capture(stmt.body))));
      return Flow::kNext;
    }
    case StmtKind::kWith: {
      std::vector<Value> values;
      for (const Param& param : stmt.params) values.push_back(eval(*param.fallback));
      const InScope scope(*this, scope_);
      for (size_t i = 0; i < values.size(); ++i) scope_->set(stmt.params[i].name, values[i]);
      return run(stmt.body);
    }
    case StmtKind::kScope: {
      const InScope scope(*this, scope_);
      return run(stmt.body);
    }
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Renderer::Flow Renderer::run_for(const Stmt& stmt) {
  const Value over = eval(*stmt.expr);
  Items items = this->items(over);
  if (stmt.filter) {
    Items kept;
    for (const Value& item : items) {
      step();
      const InScope scope(*this, scope_);
      assign(*stmt.target, item);
      if (eval(*stmt.filter).truthy()) kept.push_back(item);
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    const InScope scope(*this, scope_);
    return run(stmt.other);
  }
  auto loop = std::make_shared<Loop>();
  loop->items = std::move(items);
  if (const Value* outer = scope_->find("loop")) {
    if (const auto outer_loop = outer->as_loop()) loop->depth = outer_loop->depth;
  }
  for (; loop->index < loop->items.size(); ++loop->index) {
    step();
    const InScope scope(*this, scope_);
    scope_->set("loop", loop);
    const Value item = loop->items[loop->index];
    assign(*stmt.target, item);
    if (run(stmt.body) == Flow::kBreak) break;
  }
  return Flow::kNext;
}

void Renderer::assign(const Expr& target, Value value) {
  if (target.kind == ExprKind::kName) {
    scope_->set(target.text, std::move(value));
  } else if (target.kind == ExprKind::kAttr) {
    const Value object = eval(*target.children[0]);
    const auto space = object.as_namespace();
    if (!space) fail("cannot assign attribute on non-namespace object");
    if (target.text.starts_with('_')) {
      fail(fmt::format(
          "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{}'. "
          "Please rename the attribute.",
          target.text));
    }
    for (auto& [name, held] : space->attributes) {
      if (name == target.text) {
        held = std::move(value);
        return;
      }
    }
    space->attributes.emplace_back(target.text, std::move(value));
  } else {
    value.require_defined();
    const Items items = this->items(value);
    const size_t wanted = target.children.size();
    if (items.size() < wanted) {
      fail(fmt::format("not enough values to unpack (expected {}, got {})", wanted, items.size()));
    }
    if (items.size() > wanted) fail(fmt::format("too many values to unpack (expected {})", wanted));
    for (size_t i = 0; i < wanted; ++i) assign(*target.children[i], items[i]);
  }
}

Value Renderer::make_macro(const std::string& name, const std::vector<Param>& params, const Body& body) {
  for (Scope* scope = scope_; scope; scope = scope->parent) scope->captured = true;
  Scope* const home = scope_;
  return std::make_shared<const Callable>(
      Callable{name, [&name, &params, &body, home](Renderer& renderer, const Arguments& given) -> Value {
                 return renderer.call_macro(name, params, body, home, given);
               }});
}

void Renderer::run_macro(const Stmt& stmt) {
  scope_->set(stmt.text, make_macro(stmt.text, stmt.params, stmt.body));
}

void Renderer::run_call_block(const Stmt& stmt) {
  static const std::string kCaller = "caller";
  const Value function = eval(*stmt.expr->children[0]);
  Arguments given = arguments_of(*stmt.expr);
  given.named.emplace_back(kCaller, make_macro(kCaller, stmt.params, stmt.body));
  print(call(function, given).str());
}

std::string Renderer::call_macro(const std::string& name, const std::vector<Param>& params, const Body& body,
                                 Scope* home, const Arguments& given) {
  const InScope scope(*this, home);
  if (given.positional.size() > params.size()) {
    fail(fmt::format("macro '{}' takes not more than {} argument(s)", name, params.size()));
  }
  std::vector<bool> used(given.named.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const Value* value = i < given.positional.size() ? &given.positional[i] : nullptr;
    for (size_t j = 0; j < given.named.size(); ++j) {
      if (given.named[j].first != params[i].name) continue;
      if (value) fail(fmt::format("macro '{}' got multiple values for argument '{}'", name, params[i].name));
      value = &given.named[j].second;
      used[j] = true;
    }
    if (value) {
      scope_->set(params[i].name, *value);
    } else if (params[i].fallback) {
      scope_->set(params[i].name, eval(*params[i].fallback));
    } else {
      scope_->set(params[i].name,
                  Value::undefined(fmt::format("parameter '{}' was not provided", params[i].name)));
    }
  }
  for (size_t j = 0; j < given.named.size(); ++j) {
    if (used[j]) continue;
    if (given.named[j].first != "caller") {
      fail(fmt::format("macro '{}' takes no keyword argument '{}'", name, given.named[j].first));
    }
    scope_->set("caller", given.named[j].second);
  }
  return capture(body);
}

Value Renderer::call(const Value& function, const Arguments& arguments) {
  function.require_defined();
  const auto callable = function.as_callable();
  if (!callable) fail(fmt::format("'{}' object is not callable", function.type_name()));
  if (++calls_ > limits_.call_depth) fail(fmt::format("calls are nested deeper than {}", limits_.call_depth));
  const int line = line_;
  Value result;
  try {
    result = callable->call(*this, arguments);
  } catch (JinjaError& error) {
    --calls_;
    if (error.line == 0) error.line = line_;
    throw;
  }
  line_ = line;
  --calls_;
  return result;
}

Value Renderer::lookup(const std::string& name) {
  if (const Value* found = scope_->find(name)) return *found;
  const auto global = globals_.find(name);
  if (global != globals_.end()) return global->second;
  return Value::undefined(fmt::format("'{}' is undefined", name));
}

Arguments Renderer::arguments_of(const Expr& expr) {
  Arguments arguments;
  for (size_t i = 1; i < expr.children.size(); ++i) arguments.positional.push_back(eval(*expr.children[i]));
  for (const auto& [name, value] : expr.named) arguments.named.emplace_back(name, eval(*value));
  return arguments;
}

Value Renderer::apply_filter(const Expr& expr, const Value& block_text) {
  const Value value = expr.children[0] ? (expr.children[0]->kind == ExprKind::kFilter
                                              ? apply_filter(*expr.children[0], block_text)
                                              : eval(*expr.children[0]))
                                       : block_text;
  return filter(expr.text, value, arguments_of(expr));
}

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
