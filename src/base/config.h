// Config: YAML (JSON is a part of it) into nested structs and back. One way for every component.
//
// A struct lists its fields once; reading, unknown-key errors, `--set a.b=c` overrides and the resolved dump
// all come from that list:
//
//   struct OptimizerConfig {
//     double lr = 3e-4;            // peak learning rate
//     std::vector<double> betas = {0.9, 0.95};
//     template <typename V> void fields(V& v) { v("lr", lr); v("betas", betas); }
//   };
//   struct TrainConfig {
//     std::string name;
//     OptimizerConfig optimizer;   // nested: key `optimizer:`
//     template <typename V> void fields(V& v) { v("name", name); v("optimizer", optimizer); }
//   };
//   auto config = load_config<TrainConfig>("train.yaml", {"optimizer.lr=3e-4"});
//   std::string resolved = dump_config(config);     // YAML with every field
//
// Field types: bool, integers, double, float, std::string, std::optional<T>, std::vector<T>,
// std::map<std::string, T>, and structs with fields(). Enums: give from_name/to_name via ConfigEnum; sets of
// named parts via ConfigSet.
// Errors: UserError "train.yaml:14: zero.stag: no such key; did you mean zero.stage?"; likewise a wrong type.
#pragma once

#include <yaml-cpp/yaml.h>

#include <concepts>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/result.h"

namespace flywheel {

// Specialise for an enum: `static constexpr std::pair<const char*, E> names[] = {...};`
template <typename E>
struct ConfigEnum;

// A value's name in a config; "?" for a value that has none.
template <typename E>
requires std::is_enum_v<E>
const char* config_name(E value) {
  for (const auto& [name, known] : ConfigEnum<E>::names) {
    if (known == value) return name;
  }
  return "?";
}

// Specialise for a value type whose values are sets: `names` of values as for ConfigEnum, and `parts` of
// which sets are made, in the same way. A set is written as one name, of a value or of a part, or as a list
// of parts. The type has == and |, and its default is the empty set.
template <typename S>
struct ConfigSet;
template <typename S>
concept NamedSet = requires {
  ConfigSet<S>::parts;
};

// The name of a set, or else its parts as YAML has a list of them: "[norm,swiglu]".
template <NamedSet S>
std::string config_name(const S& value) {
  for (const auto& [name, known] : ConfigSet<S>::names) {
    if (known == value) return name;
  }
  std::string list;
  for (const auto& [name, part] : ConfigSet<S>::parts) {
    if ((value | part) == value) list += (list.empty() ? "" : ",") + std::string(name);
  }
  return "[" + list + "]";
}

// The candidate nearest to `given` by edit distance (two neighbours that changed places are one change), or
// else one that begins with `given` or with which `given` begins, by two letters or more. Large and small
// letters are alike, and so are - and _. Empty when none is near: one change in a name of up to 5 letters,
// two in up to 8, a third of longer ones.
std::string nearest_name(const std::string& given, const std::vector<std::string>& candidates);

namespace config_internal {

// "file:line" of a node, or the file when the node has no mark.
std::string where(const std::string& file, const YAML::Node& node);
[[noreturn]] void wrong_type(const std::string& file, const YAML::Node& node, const std::string& path,
                             const char* wanted);
// UserError for a name that is none of these, with the nearest.
[[noreturn]] void unknown_name(const std::string& file, const YAML::Node& node, const std::string& path,
                               const std::vector<std::string>& known);
// A mapping's key; UserError for one that is not a text (YAML lets lists be keys).
std::string key_text(const std::string& file, const YAML::Node& key);
YAML::Node parse(const std::string& file, const std::string& text);
// "an integer from 0 to 65535", for a message.
std::string integer_from_to(int64_t least, uint64_t most);
// Applies "a.b=c" (c is YAML) to the tree. Throws UserError for a text without '='; a value that does not fit
// is later blamed on "--set a.b=c".
void apply_override(const YAML::Node& root, const std::string& assignment);
std::string emit(const YAML::Node& node);

struct Probe {
  template <typename T>
  void operator()(const char*, T&) {}
};
template <typename T>
concept HasFields = requires(T t, Probe& probe) {
  t.fields(probe);
};

template <typename T>
void read_value(const std::string& file, const std::string& path, const YAML::Node& node, T& out);

struct Names {
  std::vector<std::string> list;
  template <typename T>
  void operator()(const char* name, T&) {
    list.emplace_back(name);
  }
};

struct Reader {
  const std::string& file;
  const std::string& path;
  const YAML::Node& node;
  template <typename T>
  void operator()(const char* name, T& member) {
    const YAML::Node child = node[name];
    if (child.IsDefined()) read_value(file, path.empty() ? name : path + "." + name, child, member);
  }
};

void check_keys(const std::string& file, const std::string& path, const YAML::Node& node,
                const std::vector<std::string>& known);

template <typename T>
struct IsOptional : std::false_type {};
template <typename T>
struct IsOptional<std::optional<T>> : std::true_type {};
template <typename T>
struct IsVector : std::false_type {};
template <typename T>
struct IsVector<std::vector<T>> : std::true_type {};
template <typename T>
struct IsMap : std::false_type {};
template <typename T>
struct IsMap<std::map<std::string, T>> : std::true_type {};

// YAML, or names with commas between them; of a flag, where `place` is one.
YAML::Node names_node(const std::string& place, const std::string& text);
bool read_bool(const YAML::Node& node, bool& out);
bool read_integer(const YAML::Node& node, int64_t& out);  // accepts 1e6 and 1_000_000
bool read_double(const YAML::Node& node, double& out);

template <NamedSet S>
void read_set(const std::string& file, const std::string& path, const YAML::Node& node, S& out) {
  if (!node.IsScalar() && !node.IsSequence()) wrong_type(file, node, path, "a name or a list of names");
  const auto find = [&](const YAML::Node& element, const std::string& at, bool alone) {
    std::vector<std::string> known;
    const std::string text = element.IsScalar() ? element.Scalar() : "";
    if (alone) {
      for (const auto& [name, value] : ConfigSet<S>::names) {
        if (text == name) return value;
        known.emplace_back(name);
      }
    }
    for (const auto& [name, part] : ConfigSet<S>::parts) {
      if (text == name) return part;
      known.emplace_back(name);
    }
    unknown_name(file, element, at, known);
  };
  if (node.IsScalar()) {
    out = find(node, path, true);
    return;
  }
  out = S{};
  for (size_t i = 0; i < node.size(); ++i)
    out = out | find(node[i], path.empty() ? "" : path + "[" + std::to_string(i) + "]", false);
}

template <typename T>
void read_value(const std::string& file, const std::string& path, const YAML::Node& node, T& out) {
  if constexpr (NamedSet<T>) {
    read_set(file, path, node, out);
  } else if constexpr (HasFields<T>) {
    if (node.IsNull()) return;
    if (!node.IsMap()) wrong_type(file, node, path, "a mapping of keys");
    Names names;
    out.fields(names);
    check_keys(file, path, node, names.list);
    Reader reader{file, path, node};
    out.fields(reader);
  } else if constexpr (IsOptional<T>::value) {
    if (node.IsNull()) {
      out.reset();
      return;
    }
    typename T::value_type value{};
    read_value(file, path, node, value);
    out = std::move(value);
  } else if constexpr (IsVector<T>::value) {
    if (!node.IsSequence()) wrong_type(file, node, path, "a list");
    out.clear();
    for (size_t i = 0; i < node.size(); ++i) {
      typename T::value_type value{};
      read_value(file, path + "[" + std::to_string(i) + "]", node[i], value);
      out.push_back(std::move(value));
    }
  } else if constexpr (IsMap<T>::value) {
    if (!node.IsMap()) wrong_type(file, node, path, "a mapping of keys");
    out.clear();
    for (const auto& entry : node) {
      const std::string key = key_text(file, entry.first);
      read_value(file, path + "." + key, entry.second, out[key]);
    }
  } else if constexpr (std::is_enum_v<T>) {
    std::vector<std::string> known;
    const std::string text = node.IsScalar() ? node.Scalar() : "";
    for (const auto& [name, value] : ConfigEnum<T>::names) {
      if (text == name) {
        out = value;
        return;
      }
      known.emplace_back(name);
    }
    unknown_name(file, node, path, known);
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!read_bool(node, out)) wrong_type(file, node, path, "true or false");
  } else if constexpr (std::integral<T>) {
    int64_t value = 0;
    if (!read_integer(node, value)) wrong_type(file, node, path, "an integer");
    if (!std::in_range<T>(value)) {
      using Limits = std::numeric_limits<T>;
      wrong_type(file, node, path, integer_from_to(Limits::min(), Limits::max()).c_str());
    }
    out = static_cast<T>(value);
  } else if constexpr (std::floating_point<T>) {
    double value = 0;
    if (!read_double(node, value)) wrong_type(file, node, path, "a number");
    out = static_cast<T>(value);
  } else {
    static_assert(std::is_same_v<T, std::string>, "config fields: see the list at the top of base/config.h");
    if (!node.IsScalar()) wrong_type(file, node, path, "a text");
    out = node.Scalar();
  }
}

template <typename T>
YAML::Node write_value(T& value);

struct Writer {
  YAML::Node node{YAML::NodeType::Map};
  template <typename T>
  void operator()(const char* name, T& member) {
    node[name] = write_value(member);
  }
};

YAML::Node write_double(double value);  // shortest text that reads back the same

template <typename T>
YAML::Node write_value(T& value) {
  if constexpr (NamedSet<T>) {
    const std::string name = config_name(value);
    return name.starts_with('[') ? YAML::Load(name) : YAML::Node(name);
  } else if constexpr (HasFields<T>) {
    Writer writer;
    value.fields(writer);
    return writer.node;
  } else if constexpr (IsOptional<T>::value) {
    return value ? write_value(*value) : YAML::Node(YAML::NodeType::Null);
  } else if constexpr (IsVector<T>::value) {
    YAML::Node node(YAML::NodeType::Sequence);
    for (auto&& element : value) {
      typename T::value_type copy = element;
      node.push_back(write_value(copy));
    }
    return node;
  } else if constexpr (IsMap<T>::value) {
    YAML::Node node(YAML::NodeType::Map);
    for (auto& [key, element] : value) node[key] = write_value(element);
    return node;
  } else if constexpr (std::is_enum_v<T>) {
    return YAML::Node(std::string(config_name(value)));
  } else if constexpr (std::floating_point<T>) {
    return write_double(value);
  } else if constexpr (std::integral<T> && !std::is_same_v<T, bool>) {
    return YAML::Node(static_cast<int64_t>(value));
  } else {
    return YAML::Node(value);
  }
}

}  // namespace config_internal

// From text; `file` stands in error messages.
template <typename T>
T parse_config(const std::string& file, const std::string& text,
               const std::vector<std::string>& overrides = {}) {
  YAML::Node root = config_internal::parse(file, text);
  for (const auto& assignment : overrides) config_internal::apply_override(root, assignment);
  T config{};
  config_internal::read_value(file, "", root, config);
  return config;
}

// A set from a text of its own, as a flag or a record has it: a name, or parts "a,b" or "[a,b]". `place`: the
// flag ("--recompute") or file, for error messages.
template <NamedSet S>
S parse_set(const std::string& place, const std::string& text) {
  S set{};
  config_internal::read_value(place, "", config_internal::names_node(place, text), set);
  return set;
}

// Reads a file. UserError if it is not there.
std::string read_config_file(const std::string& path);
template <typename T>
T load_config(const std::string& path, const std::vector<std::string>& overrides = {}) {
  return parse_config<T>(path, read_config_file(path), overrides);
}

// Every field with its value, as YAML.
template <typename T>
std::string dump_config(const T& config) {
  T copy = config;
  return config_internal::emit(config_internal::write_value(copy));
}

}  // namespace flywheel
