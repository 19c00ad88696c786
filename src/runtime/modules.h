// Files that are built beside the program and used at run time: modules that link what the program does not
// (Gloo, libtorch), the keeper.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace flywheel::runtime {

// Where files of that name are: beside an installed program, or where the build put them; best first.
std::vector<std::string> find_modules(const std::string& name);

// Whose symbols a module sees first where two libraries have the same: its own libraries', or the program's.
enum class SymbolsFirst : uint8_t { kOwn, kProgram };
// The symbol `entry` of the module of that name, which stays loaded. kUnavailable: there is none that can be.
Result<void*> load_module(const std::string& name, const char* entry, SymbolsFirst first);

// The file that this process runs: "/proc/self/exe" says that too, but means another one after an exec.
std::string this_program();

}  // namespace flywheel::runtime
