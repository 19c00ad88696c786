// What every file that speaks POSIX needs: the system's error as ours, and writing all of something.
//
// Errors: kNotFound when the system says ENOENT, else kIo with its words.
//
//   if (::chmod(path.c_str(), 0444) != 0) return system_error("cannot protect", path);
#pragma once

#include <cerrno>
#include <string>
#include <string_view>

#include "base/result.h"

namespace flywheel {

Error system_error(std::string_view what, std::string_view path, int number = errno);

// Goes on after short writes and signals; `path` is for the error.
Result<void> write_all(int fd, const std::string& path, std::string_view bytes);

}  // namespace flywheel
