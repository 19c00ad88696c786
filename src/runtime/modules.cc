#include "runtime/modules_internal.h"

#include <filesystem>

namespace flywheel::runtime {

std::string this_program() {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/exe", ignored);
}

std::vector<std::string> find_modules(const std::string& name) {
  std::error_code ignored;
  const auto program = std::filesystem::path(this_program()).parent_path();
  std::vector<std::string> found;
  for (const auto& folder : {program, program / "../lib/flywheel", std::filesystem::path(FLYWHEEL_MODULES)}) {
    if (std::filesystem::exists(folder / name, ignored)) found.push_back(folder / name);
  }
  return found;
}

}  // namespace flywheel::runtime
