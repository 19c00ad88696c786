#include "model/jinja_parser_internal.h"

#include <charconv>

namespace flywheel::model::jinja {
namespace {

ExprPtr join(ExprKind kind, int line, ExprPtr a, ExprPtr b, std::string text = "") {
  auto expr = expr_of(kind, line);
  expr->text = std::move(text);
  expr->children.push_back(std::move(a));
  if (b) expr->children.push_back(std::move(b));
  return expr;
}

ExprPtr constant(Value value, int line) {
  auto expr = expr_of(ExprKind::kConst, line);
  expr->value = std::move(value);
  return expr;
}

}  // namespace

ExprPtr expr_of(ExprKind kind, int line) {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  return expr;
}

ExprPtr ExpressionParser::tuple(bool with_condition) {
  const int line = now().line;
  ExprPtr first = with_condition ? expression() : or_();
  if (!is_op(",")) return first;
  auto all = expr_of(ExprKind::kTuple, line);
  all->children.push_back(std::move(first));
  while (skip_op(",")) {
    if (now().kind == TokenKind::kBlockEnd || now().kind == TokenKind::kPrintEnd || is_op(")") ||
        is_name("in"))
      break;
    all->children.push_back(with_condition ? expression() : or_());
  }
  return all;
}

ExprPtr ExpressionParser::expression() {
  const Nested nested(*this);
  ExprPtr then = or_();
  while (is_name("if")) {
    const int line = now().line;
    next();
    auto expr = expr_of(ExprKind::kIfElse, line);
    const InCondition inside(*this);
    ExprPtr condition = or_();
    ExprPtr other = skip_name("else") ? expression() : nullptr;
    expr->children.push_back(std::move(then));
    expr->children.push_back(std::move(condition));
    expr->children.push_back(std::move(other));
    then = std::move(expr);
  }
  return then;
}

// Chains of one operator make the tree as deep as they are long, so that they count as nesting.
template <typename Next, typename Match>
ExprPtr ExpressionParser::left_chain(Next&& operand, Match&& match) {
  ExprPtr left = operand();
  int length = 0;
  for (std::string op; !(op = match()).empty();) {
    if (++length > kMostNesting * 10) fail("an expression of too many operators");
    const int line = now().line;
    next();
    const ExprKind kind = op == "or" ? ExprKind::kOr : op == "and" ? ExprKind::kAnd : ExprKind::kBinary;
    ExprPtr right = operand();
    left = join(kind, line, std::move(left), std::move(right), op);
  }
  return left;
}
std::string ExpressionParser::one_of(std::initializer_list<std::string_view> ops) const {
  for (const std::string_view op : ops) {
    if (is_op(op)) return std::string(op);
  }
  return "";
}

ExprPtr ExpressionParser::or_() {
  return left_chain([&] { return and_(); }, [&] { return std::string(is_name("or") ? "or" : ""); });
}
ExprPtr ExpressionParser::and_() {
  return left_chain([&] { return not_(); }, [&] { return std::string(is_name("and") ? "and" : ""); });
}
ExprPtr ExpressionParser::not_() {
  const int line = now().line;
  if (!skip_name("not")) return comparison();
  const Nested nested(*this);
  return join(ExprKind::kNot, line, not_(), nullptr);
}
ExprPtr ExpressionParser::comparison() {
  const int line = now().line;
  ExprPtr first = sum();
  ExprPtr chain;
  for (;;) {
    std::string op = one_of({"==", "!=", "<=", ">=", "<", ">"});
    if (!op.empty()) {
      next();
    } else if (skip_name("in")) {
      op = "in";
    } else if (is_name("not") && ahead().kind == TokenKind::kName && ahead().text == "in") {
      next();
      next();
      op = "not in";
    } else {
      return chain ? std::move(chain) : std::move(first);
    }
    if (!chain) chain = join(ExprKind::kCompare, line, std::move(first), nullptr);
    chain->ops.push_back(std::move(op));
    chain->children.push_back(sum());
  }
}
ExprPtr ExpressionParser::sum() {
  return left_chain([&] { return concat(); }, [&] { return one_of({"+", "-"}); });
}
ExprPtr ExpressionParser::concat() {
  const int line = now().line;
  ExprPtr first = product();
  if (!is_op("~")) return first;
  ExprPtr all = join(ExprKind::kConcat, line, std::move(first), nullptr);
  while (skip_op("~")) all->children.push_back(product());
  return all;
}
ExprPtr ExpressionParser::product() {
  return left_chain([&] { return power(); }, [&] { return one_of({"*", "//", "/", "%"}); });
}
ExprPtr ExpressionParser::power() {
  return left_chain([&] { return unary(true); }, [&] { return one_of({"**"}); });
}
ExprPtr ExpressionParser::unary(bool with_filter) {
  const Nested nested(*this);
  const int line = now().line;
  ExprPtr expr;
  if (skip_op("-")) {
    expr = join(ExprKind::kNegate, line, unary(false), nullptr);
  } else if (skip_op("+")) {
    expr = join(ExprKind::kPlus, line, unary(false), nullptr);
  } else {
    expr = primary();
  }
  expr = postfix(std::move(expr));
  return with_filter ? filters_and_tests(std::move(expr)) : std::move(expr);
}

ExprPtr ExpressionParser::primary() {
  const Token token = now();
  next();
  switch (token.kind) {
    case TokenKind::kName:
      if (token.text == "true" || token.text == "True") return constant(true, token.line);
      if (token.text == "false" || token.text == "False") return constant(false, token.line);
      if (token.text == "none" || token.text == "None") return constant(Value::none(), token.line);
      {
        auto expr = expr_of(ExprKind::kName, token.line);
        expr->text = token.text;
        return expr;
      }
    case TokenKind::kString: {
      std::string text = token.text;
      for (; now().kind == TokenKind::kString; next()) text += now().text;
      return constant(std::move(text), token.line);
    }
    case TokenKind::kInteger: {
      int64_t value = 0;
      const auto end = token.text.data() + token.text.size();
      if (std::from_chars(token.text.data(), end, value).ec != std::errc())
        fail("an integer of more than 64 bits");
      return constant(value, token.line);
    }
    case TokenKind::kFloat:
      // Infinite where it is too large, as in Python.
      return constant(std::strtod(token.text.c_str(), nullptr), token.line);
    case TokenKind::kOperator:
      if (token.text == "(") return parenthesized(token.line);
      if (token.text == "[") return list(token.line);
      if (token.text == "{") return dict(token.line);
      break;
    default:
      break;
  }
  back();
  fail(fmt::format("unexpected {}", describe(token)));
}

ExprPtr ExpressionParser::parenthesized(int line) {
  if (skip_op(")")) return expr_of(ExprKind::kTuple, line);
  ExprPtr expr = tuple();
  expect_op(")");
  return expr;
}
ExprPtr ExpressionParser::list(int line) {
  auto expr = expr_of(ExprKind::kList, line);
  while (!is_op("]")) {
    if (!expr->children.empty()) expect_op(",");
    if (is_op("]")) break;
    expr->children.push_back(expression());
  }
  expect_op("]");
  return expr;
}
ExprPtr ExpressionParser::dict(int line) {
  auto expr = expr_of(ExprKind::kDict, line);
  while (!is_op("}")) {
    if (!expr->children.empty()) expect_op(",");
    if (is_op("}")) break;
    expr->children.push_back(expression());
    expect_op(":");
    expr->children.push_back(expression());
  }
  expect_op("}");
  return expr;
}

ExprPtr ExpressionParser::postfix(ExprPtr expr) {
  for (int length = 0;; ++length) {
    if (length > kMostNesting) fail(fmt::format("more than {} of . [] () in a row", kMostNesting));
    const int line = now().line;
    if (skip_op(".")) {
      if (now().kind == TokenKind::kInteger) {
        expr = join(ExprKind::kItem, line, std::move(expr), primary());
      } else {
        expr = join(ExprKind::kAttr, line, std::move(expr), nullptr, name());
      }
    } else if (skip_op("[")) {
      expr = subscript(std::move(expr), line);
    } else if (is_op("(")) {
      auto call = join(ExprKind::kCall, line, std::move(expr), nullptr);
      arguments(*call);
      expr = std::move(call);
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::subscript(ExprPtr object, int line) {
  std::vector<ExprPtr> parts;
  bool slice = false;
  ExprPtr part = is_op(":") ? nullptr : expression();
  parts.push_back(std::move(part));
  while (parts.size() < 3 && skip_op(":")) {
    slice = true;
    parts.push_back(is_op(":") || is_op("]") ? nullptr : expression());
  }
  expect_op("]");
  if (!slice) return join(ExprKind::kItem, line, std::move(object), std::move(parts[0]));
  auto expr = join(ExprKind::kSlice, line, std::move(object), nullptr);
  parts.resize(3);
  for (ExprPtr& bound : parts) expr->children.push_back(std::move(bound));
  return expr;
}

void ExpressionParser::arguments(Expr& call) {
  expect_op("(");
  bool first = true;
  while (!is_op(")")) {
    if (!first) expect_op(",");
    if (is_op(")")) break;
    first = false;
    if (is_op("*") || is_op("**")) fail("* and ** in calls are not supported");
    if (now().kind == TokenKind::kName && ahead().kind == TokenKind::kOperator && ahead().text == "=") {
      std::string key = name();
      next();
      call.named.emplace_back(std::move(key), expression());
    } else {
      if (!call.named.empty()) fail("invalid syntax for function call expression");
      call.children.push_back(expression());
    }
  }
  expect_op(")");
}

ExprPtr ExpressionParser::filters_and_tests(ExprPtr expr) {
  for (int length = 0;; ++length) {
    if (length > kMostNesting) fail(fmt::format("more than {} filters in a row", kMostNesting));
    if (is_op("|")) {
      expr = filter_chain(std::move(expr), false);
    } else if (is_name("is")) {
      expr = test(std::move(expr));
    } else if (is_op("(")) {
      auto call = join(ExprKind::kCall, now().line, std::move(expr), nullptr);
      arguments(*call);
      expr = std::move(call);
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::filter_chain(ExprPtr expr, bool bare_first) {
  int length = 0;
  while (bare_first || is_op("|")) {
    if (++length > kMostNesting) fail(fmt::format("more than {} filters in a row", kMostNesting));
    if (!bare_first) next();
    bare_first = false;
    auto filter = expr_of(ExprKind::kFilter, now().line);
    filter->text = name();
    while (skip_op(".")) filter->text += "." + name();
    if (!has_filter(filter->text) && conditions_ == 0)
      fail(fmt::format("No filter named '{}'.", filter->text));
    filter->children.push_back(std::move(expr));
    if (is_op("(")) arguments(*filter);
    expr = std::move(filter);
  }
  return expr;
}

ExprPtr ExpressionParser::test(ExprPtr expr) {
  const int line = now().line;
  next();
  const bool negated = skip_name("not");
  auto result = expr_of(ExprKind::kTest, line);
  result->text = name();
  while (skip_op(".")) result->text += "." + name();
  if (!has_test(result->text) && conditions_ == 0) fail(fmt::format("No test named '{}'.", result->text));
  result->children.push_back(std::move(expr));
  if (is_op("(")) {
    arguments(*result);
  } else if (begins_argument()) {
    if (is_name("is")) fail("You cannot chain multiple tests with is");
    const Nested nested(*this);
    result->children.push_back(postfix(primary()));
  }
  return negated ? join(ExprKind::kNot, line, std::move(result), nullptr) : std::move(result);
}
bool ExpressionParser::begins_argument() const {
  const Token& token = now();
  if (token.kind == TokenKind::kName)
    return token.text != "else" && token.text != "or" && token.text != "and" && token.text != "if" &&
           token.text != "in" && token.text != "not";
  if (token.kind == TokenKind::kOperator) return token.text == "[" || token.text == "{";
  return token.kind == TokenKind::kString || token.kind == TokenKind::kInteger ||
         token.kind == TokenKind::kFloat;
}

}  // namespace flywheel::model::jinja
