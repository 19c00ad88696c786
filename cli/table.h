// Columns for people on stdout, and what they hold.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"

namespace flywheel::cli {

// Rows as columns of equal width, two spaces between; the first row is the heading. Widths are counted in
// characters of UTF-8; numbers stand to the right.
std::string format_table(const std::vector<std::vector<std::string>>& rows);

// "2026-11-21 03:35:49" in the machine's time zone, from milliseconds since 1970; "-" for 0.
std::string format_time(int64_t time_ms);

// One line of JSON on stdout, for --json; ill-formed UTF-8 is replaced.
void print_json(const Json& json);

}  // namespace flywheel::cli
