#include <dlfcn.h>

#include "runtime/gloo_loader_internal.h"
#include "runtime/host_transport.h"
#include "runtime/modules_internal.h"

namespace flywheel::runtime {
namespace {

constexpr const char* kModule = "flywheel_runtime_gloo_module.so";

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// The sanitizers' own malloc must be seen by all. Without torch (which these builds never have) there is only
// one Gloo in the process anyway.
constexpr int kFlags = RTLD_NOW | RTLD_LOCAL;
#else
constexpr int kFlags = RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#endif

Result<const FlywheelGlooTable*> load() {
  std::string failures;
  for (const std::string& path : find_modules(kModule)) {
    void* module = dlopen(path.c_str(), kFlags);
    if (module == nullptr) {
      failures += fmt::format("; {}", dlerror());
      continue;
    }
    using Entry = const FlywheelGlooTable* (*)();
    const auto entry = reinterpret_cast<Entry>(dlsym(module, "flywheel_gloo_table"));
    if (entry == nullptr || entry()->version != kFlywheelGlooVersion) {
      failures += fmt::format("; {} is of another version of Flywheel", path);
      continue;
    }
    return entry();
  }
  return make_error(ErrorCode::kUnavailable,
                    "collectives between hosts need {} beside the program and the package libgloo0{}",
                    kModule, failures);
}

}  // namespace

Result<const FlywheelGlooTable*> load_gloo() {
  static const Result<const FlywheelGlooTable*> table = load();
  return table;
}

Result<void> check_host_transport() {
  const auto table = load_gloo();
  if (!table.ok()) return table.error();
  return {};
}

}  // namespace flywheel::runtime
