// Files that are built beside the program and used at run time: the module that links Gloo, the keeper.
#pragma once

#include <string>
#include <vector>

namespace flywheel::runtime {

// Where files of that name are: beside an installed program, or where the build put them; best first.
std::vector<std::string> find_modules(const std::string& name);

// The file that this process runs: "/proc/self/exe" says that too, but means another one after an exec.
std::string this_program();

}  // namespace flywheel::runtime
