#include "runtime/gloo_loader_internal.h"
#include "runtime/host_transport.h"
#include "runtime/modules.h"

namespace flywheel::runtime {
namespace {

constexpr const char* kModule = "flywheel_runtime_gloo_module.so";

Result<const FlywheelGlooTable*> load() {
  using Entry = const FlywheelGlooTable* (*)();
  // Its own symbols: libtorch, where it was loaded first, has those of another version of Gloo.
  const auto found = load_module(kModule, "flywheel_gloo_table", SymbolsFirst::kOwn);
  if (!found.ok()) {
    return make_error(ErrorCode::kUnavailable, "collectives between hosts need the package libgloo0: {}",
                      found.error().message);
  }
  const FlywheelGlooTable* table = reinterpret_cast<Entry>(*found)();
  if (table->version == kFlywheelGlooVersion) return table;
  return make_error(ErrorCode::kUnavailable, "{} is of another version of Flywheel", kModule);
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
