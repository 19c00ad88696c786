// Runs a parsed template over variables, within limits.
//
// Threads: one Renderer belongs to one thread and renders once. Errors: JinjaError.
#pragma once

#include <ctime>
#include <deque>
#include <map>
#include <optional>

#include "base/deadline.h"
#include "model/jinja_parser.h"

namespace flywheel::model::jinja {

struct Limits {
  int64_t steps = 20'000'000;      // expressions and statements
  size_t output_bytes = 64 << 20;  // of text: printed, captured and made by string operations together
  int call_depth = 100;            // macros within macros
  Deadline deadline = Deadline::never();
};

class Renderer {
 public:
  Renderer(const Limits& limits, std::tm now) : limits_(limits), now_(now) {}
  ~Renderer();
  std::string render(const Body& body, const std::vector<std::pair<std::string, Value>>& variables);

  // For filters, tests and methods.
  void step(int64_t count = 1);
  void charge(size_t bytes);
  // What a loop over the value gives; str() of it. Both cost steps by the value's size.
  Items items(const Value& value);
  std::string str(const Value& value);
  Value call(const Value& function, const Arguments& arguments);
  Value filter(const std::string& name, const Value& value, const Arguments& arguments);
  bool test(const std::string& name, const Value& value, const Arguments& arguments);
  Value attribute(const Value& object, const std::string& name);
  Value item(const Value& object, const Value& key);
  Value add(const Value& a, const Value& b);
  std::string time_text(const std::string& format) const;

 private:
  enum class Flow { kNext, kBreak, kContinue };
  struct Scope {
    Scope* parent = nullptr;
    bool captured = false;  // a macro that may outlive the scope's statement refers to it
    std::vector<std::pair<std::string, Value>> variables;
    Value* find(const std::string& name);
    void set(const std::string& name, Value value);
  };
  class InScope;

  Flow run(const Body& body);
  Flow run(const Stmt& stmt);
  Flow run_for(const Stmt& stmt);
  void run_macro(const Stmt& stmt);
  void run_call_block(const Stmt& stmt);
  std::string capture(const Body& body, Flow* flow = nullptr);
  void print(std::string_view text);
  void assign(const Expr& target, Value value);
  Value make_macro(const std::string& name, const std::vector<Param>& params, const Body& body);
  std::string call_macro(const std::string& name, const std::vector<Param>& params, const Body& body,
                         Scope* home, const Arguments& arguments);

  Value eval(const Expr& expr);
  Value lookup(const std::string& name);
  Value compare_chain(const Expr& expr);
  Value binary(const std::string& op, const Value& a, const Value& b);
  Value multiply(const Value& a, const Value& b);
  Value arithmetic(const std::string& op, const Value& a, const Value& b);
  Value slice(const Expr& expr);
  Value apply_filter(const Expr& expr, const Value& value);
  Arguments arguments_of(const Expr& expr);

  Limits limits_;
  std::tm now_;
  int64_t steps_ = 0;
  size_t bytes_ = 0;
  int calls_ = 0;
  int line_ = 0;
  std::string* out_ = nullptr;
  std::deque<std::unique_ptr<Scope>> scopes_;
  Scope* scope_ = nullptr;
  std::vector<std::weak_ptr<Namespace>> namespaces_;  // cleared at the end: they may refer to each other
  std::map<std::string, Value> globals_;
};

// jinja_methods.cc: the method `name` of a string, list or dict, bound to it; undefined without one.
Value method_of(const Value& object, const std::string& name);
// jinja_globals.cc: range, dict, namespace, ...
std::map<std::string, Value> make_globals(Renderer& renderer,
                                          std::vector<std::weak_ptr<Namespace>>& namespaces);

}  // namespace flywheel::model::jinja
