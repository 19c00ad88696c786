#include "model/jinja_parser.h"

#include "model/jinja_parser_internal.h"

namespace flywheel::model::jinja {
namespace {

// Statements and the text between them.
class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Body run() {
    Body body = statements({});
    if (now().kind != TokenKind::kEnd) fail("unexpected end of block");
    return body;
  }

 private:
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
    const InCondition inside(*this);
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

  int loops_ = 0;
};

}  // namespace

std::string TokenCursor::describe(const Token& token) {
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

Body parse_template(std::string_view source) {
  return Parser(source).run();
}

}  // namespace flywheel::model::jinja
