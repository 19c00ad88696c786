#include "base/config_places.h"

namespace flywheel {
namespace {

// "mesh.hosts[2].name" -> "mesh.hosts[2]" -> "mesh.hosts" -> "mesh" -> "".
std::string parent(const std::string& key) {
  const size_t end = key.find_last_of(".[");
  return end == std::string::npos ? "" : key.substr(0, end);
}

// A key as a file has it: letters, digits, _, and the dots and brackets between them.
bool looks_like_key(const std::string& text) {
  if (text.empty()) return false;
  for (const char c : text) {
    const bool inside = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!inside && c != '_' && c != '.' && c != '[' && c != ']') return false;
  }
  return true;
}

bool is_flag(const std::string& place) {
  return place.starts_with("--");
}

}  // namespace

void ConfigPlaces::set(const std::string& key, const std::string& place) {
  if (!place.empty()) places_[key] = place;
}

void ConfigPlaces::remember(const std::string& file, const YAML::Node& given, const YAML::Node& known) {
  file_ = file;
  note_keys("", known);
  note_places("", given);
}

void ConfigPlaces::note_keys(const std::string& path, const YAML::Node& node) {
  for (const auto& entry : node) {
    const std::string key = (path.empty() ? "" : path + ".") + entry.first.Scalar();
    keys_.insert(key);
    if (entry.second.IsMap()) note_keys(key, entry.second);
  }
}

void ConfigPlaces::note_places(const std::string& path, const YAML::Node& node) {
  if (node.IsMap()) {
    for (const auto& entry : node) {
      const std::string key = (path.empty() ? "" : path + ".") + entry.first.Scalar();
      // The key's own line, for a group's value begins a line below; but --set marks the value.
      const std::string of_value = config_internal::where(file_, entry.second);
      set(key, is_flag(of_value) ? of_value : config_internal::where(file_, entry.first));
      note_places(key, entry.second);
    }
  } else if (node.IsSequence()) {
    for (size_t i = 0; i < node.size(); ++i) {
      const std::string key = path + "[" + std::to_string(i) + "]";
      set(key, config_internal::where(file_, node[i]));
      note_places(key, node[i]);
    }
  }
}

// What lies in a list, a map or an absent option is not among the defaults, but what holds it is.
bool ConfigPlaces::is_key(const std::string& text) const {
  if (!looks_like_key(text)) return false;
  for (std::string key = text; !key.empty(); key = parent(key)) {
    if (keys_.contains(key) || places_.contains(key)) return true;
  }
  return false;
}

UserError ConfigPlaces::placed(const UserError& error) const {
  const std::string what = error.what();
  const std::string key = error.where().empty() ? what.substr(0, what.find(": ")) : error.where();
  if (!is_key(key)) return error;
  std::string place = file_;
  for (std::string set = key; !set.empty(); set = parent(set)) {
    const auto it = places_.find(set);
    if (it == places_.end() || (set != key && is_flag(it->second))) continue;  // a flag sets what it names
    place = it->second;
    break;
  }
  return place.empty() ? error : UserError(place, what, "", error.code());
}

}  // namespace flywheel
