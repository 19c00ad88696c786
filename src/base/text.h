// Small work on text that the standard library leaves to its users.
//
//   for (const std::string& axis : split("data,tensor", ',')) ...
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace flywheel {

// The parts between separators, empty ones too; an empty text has no part.
std::vector<std::string> split(std::string_view text, char separator);

}  // namespace flywheel
