// Where each key of a config was set, for what shows only later: that a value is out of range, does not fit
// another one, or names something that is not there.
//
// Checks throw UserError with the key alone ("mesh.data"), since a config may also be made in code. Whoever
// read it from a file runs them through blame(), which puts the place before the key:
//
//   ConfigPlaces places;
//   const auto config = places.load<TrainConfig>("train.yaml", {"steps=0"});
//   places.blame([&] { check(config); });     // "--set steps=0: steps: must be at least 1"
//                                             // "train.yaml:14: mesh.data: must be at least 1"
//
// A key that nothing set is blamed on the group that lacks it, or on the file. What is no key of this config
// flies on unchanged. Threads: one.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/config.h"
#include "base/result.h"

namespace flywheel {

class ConfigPlaces {
 public:
  // As parse_config() and load_config(). `file` empty: there is none, only overrides.
  template <typename T>
  T parse(const std::string& file, const std::string& text, const std::vector<std::string>& overrides = {}) {
    const std::string name = file.empty() ? "--set" : file;
    YAML::Node root = config_internal::parse(name, text);
    for (const auto& assignment : overrides) config_internal::apply_override(root, assignment);
    T config{};
    config_internal::read_value(name, "", root, config);
    T defaults{};
    remember(file, root, config_internal::write_value(defaults));
    return config;
  }
  template <typename T>
  T load(const std::string& file, const std::vector<std::string>& overrides = {}) {
    return parse<T>(file, file.empty() ? "" : read_config_file(file), overrides);
  }

  // What else sets a key, over file and --set: a flag such as "--port".
  void set(const std::string& key, const std::string& place);

  template <typename F>
  auto blame(F&& checked) const -> decltype(checked()) {
    try {
      return checked();
    } catch (const UserError& error) {
      throw placed(error);
    }
  }
  // The error with its place, where it names a key of this config (as where(), or before the first ": ").
  UserError placed(const UserError& error) const;

 private:
  void remember(const std::string& file, const YAML::Node& given, const YAML::Node& known);
  void note_places(const std::string& path, const YAML::Node& node);
  void note_keys(const std::string& path, const YAML::Node& node);
  bool is_key(const std::string& text) const;

  std::string file_;
  std::set<std::string> keys_;                 // every key there is, and the groups
  std::map<std::string, std::string> places_;  // of those that were set: "train.yaml:14", "--set a.b=c"
};

}  // namespace flywheel
