#include "runtime/operation.h"

#include "base/config.h"

namespace flywheel::runtime {
namespace {

// Filled before main; read-only afterwards.
std::map<std::string, Operation>& operations() {
  static std::map<std::string, Operation> all;
  return all;
}
std::map<std::string, std::function<std::unique_ptr<State>()>>& states() {
  static std::map<std::string, std::function<std::unique_ptr<State>()>> all;
  return all;
}

std::map<std::string, std::function<Result<void>()>>& needs() {
  static std::map<std::string, std::function<Result<void>()>> all;
  return all;
}

}  // namespace

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kPure:
      return "pure";
    case Kind::kStateful:
      return "stateful";
    case Kind::kNondeterministic:
      return "nondeterministic";
  }
  return "unknown";
}

OperationRegistration::OperationRegistration(const std::string& name, Kind kind, OperationFunction run) {
  CHECK(operations().emplace(name, Operation{kind, std::move(run)}).second, "operation {} registered twice",
        name);
}

NeedRegistration::NeedRegistration(const std::string& name, std::function<Result<void>()> meet) {
  CHECK(needs().emplace(name, std::move(meet)).second, "need {} registered twice", name);
}

StateRegistration::StateRegistration(const std::string& type, std::function<std::unique_ptr<State>()> make) {
  CHECK(states().emplace(type, std::move(make)).second, "state {} registered twice", type);
}

std::vector<std::string> operation_names() {
  std::vector<std::string> names;
  for (const auto& [name, operation] : operations()) names.push_back(name);
  return names;
}

Result<const Operation*> find_operation(const std::string& name) {
  if (const auto found = operations().find(name); found != operations().end()) return &found->second;
  const std::string near = nearest_name(name, operation_names());
  return make_error(ErrorCode::kNotFound, "no operation {} in this program{}", name,
                    near.empty() ? "" : "; did you mean " + near + "?");
}

Result<void> meet_need(const std::string& name) {
  if (const auto found = needs().find(name); found != needs().end()) return found->second();
  return make_error(ErrorCode::kNotFound, "no need {} in this program; REGISTER_NEED names them", name);
}

Result<std::unique_ptr<State>> make_state(const std::string& type) {
  if (const auto found = states().find(type); found != states().end()) return found->second();
  return make_error(ErrorCode::kNotFound, "no state type {} in this program; REGISTER_STATE names them",
                    type);
}

}  // namespace flywheel::runtime
