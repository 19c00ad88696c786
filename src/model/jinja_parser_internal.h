// The lower half of the parser: a cursor over the tokens, and the grammar of expressions over it. Statements,
// which contain expressions, are jinja_parser.cc's.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "model/jinja_lexer.h"
#include "model/jinja_parser.h"

namespace flywheel::model::jinja {

// Nesting of expressions and statements; everything that walks the tree recurses.
constexpr int kMostNesting = 100;

// Looks at the current token, goes on, or says what else it expected there.
class TokenCursor {
 public:
  explicit TokenCursor(std::string_view source) : tokens_(tokenize(source)) {}

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
  void back() { --at_; }
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
  static std::string describe(const Token& token);

  // Counts one level of nesting while it lives.
  struct Nested {
    explicit Nested(TokenCursor& cursor) : cursor(cursor) {
      if (++cursor.nesting_ > kMostNesting) cursor.fail(fmt::format("nested deeper than {}", kMostNesting));
    }
    ~Nested() { --cursor.nesting_; }
    TokenCursor& cursor;
  };

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
};

ExprPtr expr_of(ExprKind kind, int line);

// One function for each level of Jinja's grammar, the loosest operators first.
class ExpressionParser : public TokenCursor {
 public:
  using TokenCursor::TokenCursor;

  // "a, b" is a tuple without parentheses.
  ExprPtr tuple(bool with_condition = true);
  ExprPtr expression();
  // "| name(args) | name": of `expr`, or of the block's text where that is null.
  ExprPtr filter_chain(ExprPtr expr, bool bare_first);

  // Inside `if`: unknown filters and tests are an error only where they run.
  struct InCondition {
    explicit InCondition(ExpressionParser& parser) : parser(parser) { ++parser.conditions_; }
    ~InCondition() { --parser.conditions_; }
    ExpressionParser& parser;
  };

 private:
  template <typename Next, typename Match>
  ExprPtr left_chain(Next&& operand, Match&& match);
  std::string one_of(std::initializer_list<std::string_view> ops) const;
  ExprPtr or_();
  ExprPtr and_();
  ExprPtr not_();
  ExprPtr comparison();
  ExprPtr sum();
  ExprPtr concat();
  ExprPtr product();
  ExprPtr power();
  ExprPtr unary(bool with_filter);
  ExprPtr primary();
  ExprPtr parenthesized(int line);
  ExprPtr list(int line);
  ExprPtr dict(int line);
  ExprPtr postfix(ExprPtr expr);
  ExprPtr subscript(ExprPtr object, int line);
  void arguments(Expr& call);  // "(a, b, name=c)" appended to `call`
  ExprPtr filters_and_tests(ExprPtr expr);
  ExprPtr test(ExprPtr expr);
  bool begins_argument() const;

  int conditions_ = 0;
};

}  // namespace flywheel::model::jinja
