#include "runtime/modules.h"

#include <dlfcn.h>

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

Result<void*> load_module(const std::string& name, const char* entry, SymbolsFirst first) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  first = SymbolsFirst::kProgram;  // the sanitizers' own malloc must be seen by all
#endif
  const int flags = RTLD_NOW | RTLD_LOCAL | (first == SymbolsFirst::kOwn ? RTLD_DEEPBIND : 0);
  std::string failures;
  for (const std::string& path : find_modules(name)) {
    void* module = ::dlopen(path.c_str(), flags);
    void* found = module == nullptr ? nullptr : ::dlsym(module, entry);
    if (found != nullptr) return found;
    failures += fmt::format("; {}", ::dlerror());
  }
  if (failures.empty()) return make_error(ErrorCode::kUnavailable, "no {} beside the program", name);
  return make_error(ErrorCode::kUnavailable, "{} does not load{}", name, failures);
}

}  // namespace flywheel::runtime
