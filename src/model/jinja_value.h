// Values of the template language: Python's, as far as chat templates see them.
//
// Immutable and shared, so copying is cheap; a Namespace alone can be changed. Strings are UTF-8 and are
// counted, indexed and cut by code point, as Python does.
// Threads: a value made while rendering belongs to that rendering.
// Errors: JinjaError, thrown by operations that Python would refuse, with Python's words where templates'
// authors know them. It does not leave chat_template.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/json.h"

namespace flywheel::model::jinja {

struct JinjaError : std::runtime_error {
  using std::runtime_error::runtime_error;
  int line = 0;  // where known
};

[[noreturn]] inline void fail(const std::string& message) {
  throw JinjaError(message);
}

// Values nested deeper than this are refused: everything that walks a value recurses.
constexpr int kMostDepth = 200;
// ... and values that would be larger than this when written out: a list may hold one part many times, and
// that one another, so that little memory stands for very much text.
constexpr int64_t kMostWeight = 8 << 20;

class Value;
class Renderer;

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
  // The argument at `position` or of this name; nullptr if it was not given.
  const Value* find(size_t position, std::string_view name) const;
};

using Items = std::vector<Value>;
using Pairs = std::vector<std::pair<Value, Value>>;

struct Undefined {
  std::shared_ptr<const std::string> why;  // "'x' is undefined"
};
struct String {
  std::shared_ptr<const std::string> text;
  bool markup = false;  // went through `safe` or `escape`: adding to it escapes the other side
};
struct List {
  Items items;
  bool tuple = false;
  int depth = 1;
  int64_t weight = 1;
};
struct Dict {
  Pairs pairs;  // in order of insertion
  int depth = 1;
  int64_t weight = 1;
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
};
struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
};
struct Callable {
  std::string name;
  std::function<Value(Renderer&, const Arguments&)> call;
};
// The `loop` of a for statement.
struct Loop {
  Items items;
  size_t index = 0;
  int depth = 1;
  std::shared_ptr<Value> last_changed;
};

class Value {
 public:
  Value() : Value(Undefined{}) {}
  Value(Undefined undefined) : state_(std::move(undefined)) {}  // NOLINT: implicit on purpose
  Value(bool value) : state_(value) {}                          // NOLINT
  Value(int64_t value) : state_(value) {}                       // NOLINT
  Value(int value) : state_(int64_t{value}) {}                  // NOLINT
  Value(double value) : state_(value) {}                        // NOLINT
  Value(std::string text, bool markup = false)                  // NOLINT
      : state_(String{std::make_shared<const std::string>(std::move(text)), markup}) {}
  Value(std::string_view text) : Value(std::string(text)) {}                  // NOLINT
  Value(const char* text) : Value(std::string(text)) {}                       // NOLINT
  Value(std::shared_ptr<Namespace> value) : state_(std::move(value)) {}       // NOLINT
  Value(std::shared_ptr<Loop> value) : state_(std::move(value)) {}            // NOLINT
  Value(std::shared_ptr<const Callable> value) : state_(std::move(value)) {}  // NOLINT
  static Value none();
  static Value undefined(std::string why);
  static Value list(Items items, bool tuple = false);
  static Value dict(Pairs pairs);  // of equal keys the last value holds, at the first one's place
  static Value from_json(const OrderedJson& json);

  bool is_undefined() const { return std::holds_alternative<Undefined>(state_); }
  bool is_none() const { return std::holds_alternative<std::monostate>(state_); }
  bool is_bool() const { return std::holds_alternative<bool>(state_); }
  bool is_int() const { return std::holds_alternative<int64_t>(state_); }  // not bool
  bool is_float() const { return std::holds_alternative<double>(state_); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_integral() const { return is_bool() || is_int(); }
  bool is_string() const { return std::holds_alternative<String>(state_); }
  bool is_markup() const { return is_string() && std::get<String>(state_).markup; }
  bool is_list() const { return std::holds_alternative<std::shared_ptr<const List>>(state_); }
  bool is_dict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(state_); }

  // The content; the kind must be right.
  const std::string& text() const { return *std::get<String>(state_).text; }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(state_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(state_); }
  int64_t integer() const;  // bool or int
  double number() const;    // bool, int or float
  // nullptr for other kinds.
  std::shared_ptr<Namespace> as_namespace() const;
  std::shared_ptr<Loop> as_loop() const;
  std::shared_ptr<const Callable> as_callable() const;

  // Throws the undefined value's own message; does nothing for others.
  void require_defined() const;

  bool truthy() const;
  std::string str() const;        // Python's str(): what a template prints
  std::string repr() const;       // Python's repr()
  const char* type_name() const;  // "str", "NoneType"
  int depth() const;
  int64_t weight() const;  // one for each part and for each 16 bytes of text, counted where they stand
  size_t length() const;   // len(); throws for what has none
  Items iterate() const;   // list elements, dict keys, characters; throws for what cannot be iterated
  bool operator==(const Value& other) const;

 private:
  std::variant<Undefined, std::monostate, bool, int64_t, double, String, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, std::shared_ptr<Loop>,
               std::shared_ptr<const Callable>>
      state_;
};

// Python's `a < b` and its like; op is "<", "<=", ">" or ">=".
bool compare(const Value& a, const Value& b, std::string_view op);
bool contains(const Value& container, const Value& item);

std::string float_repr(double value);

struct JsonStyle {
  bool ascii = false, sort_keys = false;
  std::string indent;  // one level's; with newlines
  bool multiline = false;
  std::string item_separator = ", ", key_separator = ": ";
};
// json.dumps
std::string to_json(const Value& value, const JsonStyle& style);

// Code points, for what counts and cuts.
std::u32string to_code_points(std::string_view text);
std::string from_code_points(std::u32string_view text);

}  // namespace flywheel::model::jinja
