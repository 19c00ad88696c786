// The template language's syntax: text to a tree. Jinja 3.1's, as Hugging Face sets it up: trim_blocks,
// lstrip_blocks, loop controls, and the `generation` tag.
//
// Ownership: the tree owns everything. Threads: immutable after parsing.
// Errors: JinjaError with the line, for text that is not a template and for nesting past a limit.
#pragma once

#include <memory>

#include "model/jinja_value.h"

namespace flywheel::model::jinja {

enum class ExprKind {
  kConst,  // value
  kName,   // text
  kList,   // children
  kTuple,
  kDict,    // children: key, value, key, value, ...
  kAttr,    // children[0].text
  kItem,    // children[0][children[1]]
  kSlice,   // children: object, start, stop, step; the last three may be null
  kCall,    // children[0](children[1..], named)
  kFilter,  // children[0] | text(children[1..], named); children[0] null: the block's text
  kTest,    // children[0] is text(children[1..])
  kNegate,  // -children[0]
  kPlus,
  kNot,
  kAnd,
  kOr,
  kBinary,   // text: + - * / // % **
  kConcat,   // children joined as text
  kCompare,  // children[0] ops[0] children[1] ops[1] ...
  kIfElse,   // children: then, condition, else (may be null)
};

struct Expr {
  ExprKind kind;
  int line = 0;
  std::string text;
  Value value;
  std::vector<std::unique_ptr<Expr>> children;
  std::vector<std::pair<std::string, std::unique_ptr<Expr>>> named;
  std::vector<std::string> ops;
};
using ExprPtr = std::unique_ptr<Expr>;

enum class StmtKind {
  kText,         // text
  kPrint,        // expr
  kSet,          // target = expr
  kSetBlock,     // target = body, through filter (may be null)
  kIf,           // expr, body, other
  kFor,          // target in expr if filter: body, else other
  kMacro,        // text, params, body
  kCallBlock,    // expr (a call), params, body
  kFilterBlock,  // filter, body
  kWith,         // params (all with defaults), body
  kScope,        // body: the generation tag
  kBreak,
  kContinue,
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;
struct Param {
  std::string name;
  ExprPtr fallback;  // null: none
};
struct Stmt {
  StmtKind kind;
  int line = 0;
  std::string text;
  ExprPtr target, expr, filter;
  std::vector<Param> params;
  Body body, other;
};

Body parse_template(std::string_view source);

// Names that the language has; parsing refuses others outside of conditions, as Jinja does.
bool has_filter(std::string_view name);
bool has_test(std::string_view name);

}  // namespace flywheel::model::jinja
