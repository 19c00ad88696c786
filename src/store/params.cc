#include "store/params.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>

namespace flywheel::store {
namespace {

using Params = std::map<std::string, std::string>;

std::string text_of(const YAML::Node& value) {
  return value.IsNull() ? "null" : value.Scalar();
}

bool is_plain(const YAML::Node& value) {
  return value.IsScalar() || value.IsNull();
}

void flatten(const std::string& key, const YAML::Node& value, Params& out) {
  if (value.IsMap()) {
    for (const auto& entry : value)
      flatten((key.empty() ? "" : key + ".") + text_of(entry.first), entry.second, out);
  } else if (value.IsSequence() && !std::all_of(value.begin(), value.end(), is_plain)) {
    for (size_t i = 0; i < value.size(); ++i) flatten(fmt::format("{}[{}]", key, i), value[i], out);
  } else if (value.IsSequence()) {
    std::string list;
    for (const YAML::Node& element : value) list += (list.empty() ? "" : ", ") + text_of(element);
    out[key] = "[" + list + "]";
  } else if (!key.empty()) {
    out[key] = text_of(value);
  }
}

}  // namespace

Result<Params> flatten_params(const std::string& config) {
  try {
    Params params;
    flatten("", YAML::Load(config), params);
    return params;
  } catch (const YAML::Exception& error) {
    return make_error(ErrorCode::kInvalid, "a run's config is not YAML, at line {}: {}", error.mark.line + 1,
                      error.msg);
  }
}

}  // namespace flywheel::store
