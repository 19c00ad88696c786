// JSON in memory: nlohmann's, under one name. `parse_json` gives a Result instead of an exception.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "base/result.h"

namespace flywheel {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// kInvalid with byte position on malformed text, and for text nested deeper than `max_depth`.
Result<Json> parse_json(std::string_view text, int max_depth = 256);
Result<OrderedJson> parse_ordered_json(std::string_view text, int max_depth = 256);

}  // namespace flywheel
