// The models that a server offers, by name: each an engine, and a chat template where the model has one.
//
// Ownership: the registry shares its models; a request keeps the one it uses alive.
// Threads: any.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "model/chat_template.h"

namespace flywheel::serve {

struct ServedModel {
  std::string name;
  int64_t created_s = 0;  // when it was loaded, seconds since 1970
  std::unique_ptr<engine::Engine> engine;
  std::optional<model::ChatTemplate> chat_template;
};

class ModelRegistry {
 public:
  // Opens the model and its engine. The name it is served under is config.served_name, or the model's own.
  Result<void> load(const engine::EngineConfig& config);
  std::shared_ptr<ServedModel> find(const std::string& name) const;  // null: none such
  std::vector<std::shared_ptr<ServedModel>> list() const;
  // Stops every engine; what they were computing ends as cancelled.
  void stop();

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<ServedModel>> models_;
};

}  // namespace flywheel::serve
