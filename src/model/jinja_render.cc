#include "model/jinja_render.h"

namespace flywheel::model::jinja {

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

}  // namespace flywheel::model::jinja
