#include "model/jinja_parser.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "model/jinja_lexer.h"

namespace flywheel::model::jinja {
namespace {

// Nesting of expressions and statements; everything that walks the tree recurses.
constexpr int kMostNesting = 100;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Body run() {
    Body body = statements({});
    if (now().kind != TokenKind::kEnd) fail("unexpected end of block");
    return body;
  }

 private:
  struct Nested {
    explicit Nested(Parser& parser) : parser(parser) {
      if (++parser.nesting_ > kMostNesting) parser.fail(fmt::format("nested deeper than {}", kMostNesting));
    }
    ~Nested() { --parser.nesting_; }
    Parser& parser;
  };

  [[noreturn]] void fail(const std::string& message) const {
    JinjaError error(message);
    error.line = now().line;
    throw error;
  }
  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void next() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  bool is_op(std::string_view op) const { return now().kind == TokenKind::kOperator && now().text == op; }
  bool is_name(std::string_view name) const { return now().kind == TokenKind::kName && now().text == name; }
  bool skip_op(std::string_view op) { return is_op(op) && (next(), true); }
  bool skip_name(std::string_view name) { return is_name(name) && (next(), true); }
  void expect_op(std::string_view op) {
    if (!skip_op(op)) fail(fmt::format("expected token '{}', got {}", op, describe(now())));
  }
  void expect_name(std::string_view name) {
    if (!skip_name(name)) fail(fmt::format("expected token '{}', got {}", name, describe(now())));
  }
  void expect(TokenKind kind) {
    if (now().kind != kind) fail(fmt::format("unexpected {}", describe(now())));
    next();
  }
  std::string name() {
    if (now().kind != TokenKind::kName) fail(fmt::format("expected token 'name', got {}", describe(now())));
    std::string text = now().text;
    next();
    return text;
  }
  static std::string describe(const Token& token) {
    switch (token.kind) {
      case TokenKind::kBlockEnd:
        return "'end of statement block'";
      case TokenKind::kPrintEnd:
        return "'end of print statement'";
      case TokenKind::kEnd:
        return "'end of template'";
      case TokenKind::kText:
        return "'template data / text'";
      default:
        return "'" + token.text + "'";
    }
  }

  // Statements up to `{% NAME`, for one of `ends`; the name is the current token then. Empty: to the end.
  Body statements(std::initializer_list<std::string_view> ends) {
    const Nested nested(*this);
    Body body;
    for (;;) {
      const int line = now().line;
      if (now().kind == TokenKind::kEnd) {
        if (ends.size() == 0) return body;
        fail(fmt::format("Unexpected end of template. Jinja was looking for the following tags: '{}'.",
                         *ends.begin()));
      }
      if (now().kind == TokenKind::kText) {
        body.push_back(make(StmtKind::kText, line));
        body.back()->text = now().text;
        next();
      } else if (now().kind == TokenKind::kPrintBegin) {
        next();
        body.push_back(make(StmtKind::kPrint, line));
        body.back()->expr = tuple();
        expect(TokenKind::kPrintEnd);
      } else {
        expect(TokenKind::kBlockBegin);
        if (now().kind != TokenKind::kName) fail("tag name expected");
        if (std::find(ends.begin(), ends.end(), now().text) != ends.end()) return body;
        body.push_back(statement());
      }
    }
  }
  static std::unique_ptr<Stmt> make(StmtKind kind, int line) {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = line;
    return stmt;
  }

  std::unique_ptr<Stmt> statement() {
    const int line = now().line;
    const std::string tag = name();
    if (tag == "set") return set(line);
    if (tag == "if") return if_(line);
    if (tag == "for") return for_(line);
    if (tag == "macro") return macro(line);
    if (tag == "call") return call_block(line);
    if (tag == "filter") {
      auto stmt = make(StmtKind::kFilterBlock, line);
      stmt->filter = filter_chain(nullptr, true);
      stmt->body = block("endfilter");
      return stmt;
    }
    if (tag == "with") return with(line);
    if (tag == "generation") {
      auto stmt = make(StmtKind::kScope, line);
      stmt->body = block("endgeneration");
      return stmt;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) fail(fmt::format("'{}' outside loop", tag));
      auto stmt = make(tag == "break" ? StmtKind::kBreak : StmtKind::kContinue, line);
      expect(TokenKind::kBlockEnd);
      return stmt;
    }
    fail(fmt::format("Encountered unknown tag '{}'.", tag));
  }

  // "%} body {% END %}"
  Body block(std::string_view end) {
    expect(TokenKind::kBlockEnd);
    Body body = statements({end});
    next();
    expect(TokenKind::kBlockEnd);
    return body;
  }

  ExprPtr target() {
    const int line = now().line;
    std::vector<ExprPtr> parts;
    bool is_tuple = false;
    do {
      if (!parts.empty() && !(now().kind == TokenKind::kName || is_op("("))) break;  // a comma at the end
      if (skip_op("(")) {
        parts.push_back(target());
        expect_op(")");
        continue;
      }
      auto part = expr_of(ExprKind::kName, now().line);
      part->text = name();
      if (part->text == "true" || part->text == "false" || part->text == "none" || part->text == "True" ||
          part->text == "False" || part->text == "None") {
        fail(fmt::format("can't assign to '{}'", part->text));
      }
      if (skip_op(".")) {
        auto attribute = expr_of(ExprKind::kAttr, line);
        attribute->text = name();
        attribute->children.push_back(std::move(part));
        part = std::move(attribute);
      }
      parts.push_back(std::move(part));
    } while (is_op(",") && (is_tuple = true, next(), true));
    if (!is_tuple) return std::move(parts.front());
    auto all = expr_of(ExprKind::kTuple, line);
    all->children = std::move(parts);
    return all;
  }

  std::unique_ptr<Stmt> set(int line) {
    auto stmt = make(StmtKind::kSet, line);
    stmt->target = target();
    if (skip_op("=")) {
      stmt->expr = tuple();
      expect(TokenKind::kBlockEnd);
      return stmt;
    }
    stmt->kind = StmtKind::kSetBlock;
    if (is_op("|")) stmt->filter = filter_chain(nullptr, false);
    stmt->body = block("endset");
    return stmt;
  }

  std::unique_ptr<Stmt> if_(int line) {
    const Nested nested(*this);
    auto stmt = make(StmtKind::kIf, line);
    stmt->expr = tuple(/*with_condition=*/false);
    expect(TokenKind::kBlockEnd);
    ++conditions_;
    stmt->body = statements({"elif", "else", "endif"});
    const int tag_line = now().line;
    const std::string tag = name();
    if (tag == "elif") {
      stmt->other.push_back(if_(tag_line));
    } else {
      if (tag == "else") {
        expect(TokenKind::kBlockEnd);
        stmt->other = statements({"endif"});
        next();
      }
      expect(TokenKind::kBlockEnd);
    }
    --conditions_;
    return stmt;
  }

  std::unique_ptr<Stmt> for_(int line) {
    auto stmt = make(StmtKind::kFor, line);
    stmt->target = target();
    expect_name("in");
    stmt->expr = tuple(/*with_condition=*/false);
    if (skip_name("if")) stmt->filter = expression();
    if (is_name("recursive")) fail("recursive loops are not supported; use a macro");
    expect(TokenKind::kBlockEnd);
    ++loops_;
    stmt->body = statements({"else", "endfor"});
    --loops_;
    if (name() == "else") {
      expect(TokenKind::kBlockEnd);
      stmt->other = statements({"endfor"});
      next();
    }
    expect(TokenKind::kBlockEnd);
    return stmt;
  }

  std::vector<Param> params(std::string_view end) {
    std::vector<Param> list;
    while (!is_op(end)) {
      if (!list.empty()) expect_op(",");
      if (is_op(end)) break;
      Param param{name(), nullptr};
      if (skip_op("=")) {
        param.fallback = expression();
      } else if (!list.empty() && list.back().fallback) {
        fail("non-default argument follows default argument");
      }
      list.push_back(std::move(param));
    }
    expect_op(end);
    return list;
  }

  std::unique_ptr<Stmt> macro(int line) {
    auto stmt = make(StmtKind::kMacro, line);
    stmt->text = name();
    expect_op("(");
    stmt->params = params(")");
    const int loops = std::exchange(loops_, 0);
    stmt->body = block("endmacro");
    loops_ = loops;
    return stmt;
  }

  std::unique_ptr<Stmt> call_block(int line) {
    auto stmt = make(StmtKind::kCallBlock, line);
    if (skip_op("(")) stmt->params = params(")");
    stmt->expr = expression();
    if (stmt->expr->kind != ExprKind::kCall) fail("expected call");
    const int loops = std::exchange(loops_, 0);
    stmt->body = block("endcall");
    loops_ = loops;
    return stmt;
  }

  std::unique_ptr<Stmt> with(int line) {
    auto stmt = make(StmtKind::kWith, line);
    while (now().kind != TokenKind::kBlockEnd) {
      if (!stmt->params.empty()) expect_op(",");
      Param param{name(), nullptr};
      expect_op("=");
      param.fallback = expression();
      stmt->params.push_back(std::move(param));
    }
    stmt->body = block("endwith");
    return stmt;
  }

  // --- expressions, loosest first ---

  static ExprPtr expr_of(ExprKind kind, int line) {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    return expr;
  }
  static ExprPtr join(ExprKind kind, int line, ExprPtr a, ExprPtr b, std::string text = "") {
    auto expr = expr_of(kind, line);
    expr->text = std::move(text);
    expr->children.push_back(std::move(a));
    if (b) expr->children.push_back(std::move(b));
    return expr;
  }
  static ExprPtr constant(Value value, int line) {
    auto expr = expr_of(ExprKind::kConst, line);
    expr->value = std::move(value);
    return expr;
  }

  // "a, b" is a tuple without parentheses.
  ExprPtr tuple(bool with_condition = true) {
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

  ExprPtr expression() {
    const Nested nested(*this);
    ExprPtr then = or_();
    while (is_name("if")) {
      const int line = now().line;
      next();
      auto expr = expr_of(ExprKind::kIfElse, line);
      ++conditions_;
      ExprPtr condition = or_();
      ExprPtr other = skip_name("else") ? expression() : nullptr;
      --conditions_;
      expr->children.push_back(std::move(then));
      expr->children.push_back(std::move(condition));
      expr->children.push_back(std::move(other));
      then = std::move(expr);
    }
    return then;
  }

  // Chains of one operator make the tree as deep as they are long, so that they count as nesting.
  template <typename Next, typename Match>
  ExprPtr left_chain(Next&& operand, Match&& match) {
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
  std::string one_of(std::initializer_list<std::string_view> ops) const {
    for (const std::string_view op : ops) {
      if (is_op(op)) return std::string(op);
    }
    return "";
  }

  ExprPtr or_() {
    return left_chain([&] { return and_(); }, [&] { return std::string(is_name("or") ? "or" : ""); });
  }
  ExprPtr and_() {
    return left_chain([&] { return not_(); }, [&] { return std::string(is_name("and") ? "and" : ""); });
  }
  ExprPtr not_() {
    const int line = now().line;
    if (!skip_name("not")) return comparison();
    const Nested nested(*this);
    return join(ExprKind::kNot, line, not_(), nullptr);
  }
  ExprPtr comparison() {
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
  ExprPtr sum() {
    return left_chain([&] { return concat(); }, [&] { return one_of({"+", "-"}); });
  }
  ExprPtr concat() {
    const int line = now().line;
    ExprPtr first = product();
    if (!is_op("~")) return first;
    ExprPtr all = join(ExprKind::kConcat, line, std::move(first), nullptr);
    while (skip_op("~")) all->children.push_back(product());
    return all;
  }
  ExprPtr product() {
    return left_chain([&] { return power(); }, [&] { return one_of({"*", "//", "/", "%"}); });
  }
  ExprPtr power() {
    return left_chain([&] { return unary(true); }, [&] { return one_of({"**"}); });
  }
  ExprPtr unary(bool with_filter) {
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

  ExprPtr primary() {
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
        return constant(std::stod(token.text), token.line);
      case TokenKind::kOperator:
        if (token.text == "(") return parenthesized(token.line);
        if (token.text == "[") return list(token.line);
        if (token.text == "{") return dict(token.line);
        break;
      default:
        break;
    }
    --at_;
    fail(fmt::format("unexpected {}", describe(token)));
  }

  ExprPtr parenthesized(int line) {
    if (skip_op(")")) return expr_of(ExprKind::kTuple, line);
    ExprPtr expr = tuple();
    expect_op(")");
    return expr;
  }
  ExprPtr list(int line) {
    auto expr = expr_of(ExprKind::kList, line);
    while (!is_op("]")) {
      if (!expr->children.empty()) expect_op(",");
      if (is_op("]")) break;
      expr->children.push_back(expression());
    }
    expect_op("]");
    return expr;
  }
  ExprPtr dict(int line) {
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

  ExprPtr postfix(ExprPtr expr) {
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

  ExprPtr subscript(ExprPtr object, int line) {
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

  // "(a, b, name=c)" appended to `call`.
  void arguments(Expr& call) {
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

  ExprPtr filters_and_tests(ExprPtr expr) {
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

  // "| name(args) | name": of `expr`, or of the block's text where that is null.
  ExprPtr filter_chain(ExprPtr expr, bool bare_first) {
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

  ExprPtr test(ExprPtr expr) {
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
  bool begins_argument() const {
    const Token& token = now();
    if (token.kind == TokenKind::kName)
      return token.text != "else" && token.text != "or" && token.text != "and" && token.text != "if" &&
             token.text != "in" && token.text != "not";
    if (token.kind == TokenKind::kOperator) return token.text == "[" || token.text == "{";
    return token.kind == TokenKind::kString || token.kind == TokenKind::kInteger ||
           token.kind == TokenKind::kFloat;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
  int conditions_ = 0;  // inside if: unknown filters and tests are an error only where they run
};

}  // namespace

Body parse_template(std::string_view source) {
  return Parser(source).run();
}

}  // namespace flywheel::model::jinja
