// Lines within a host (lines.h).
#pragma once

#include "runtime/lines.h"

namespace flywheel::runtime {

Result<std::unique_ptr<Lines>> listen_here(const std::string& path, Lines::Events events,
                                           std::function<void()> changed);
Result<std::unique_ptr<Line>> connect_here(const std::string& path, const std::string& identity);

}  // namespace flywheel::runtime
