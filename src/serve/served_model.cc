#include "serve/served_model.h"

#include <chrono>

#include "base/log.h"
#include "model/open_model.h"
#include "model/tokenizer.h"

namespace flywheel::serve {

Result<void> ModelRegistry::load(const engine::EngineConfig& config) {
  auto served = std::make_shared<ServedModel>();
  ASSIGN_OR_RETURN(served->engine, engine::Engine::open(config));
  const model::OpenModel& open = served->engine->model();
  served->name = config.served_name.empty() ? open.name : config.served_name;
  served->created_s =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
          .count();
  if (const std::string& source = open.tokenizer->chat_template(); !source.empty()) {
    auto parsed = model::ChatTemplate::parse(source);
    if (parsed.ok()) {
      served->chat_template = std::move(parsed).value();
    } else {  // completions still work: say it now, refuse chats when they come
      LOG_WARN("model {}: its chat template cannot be used: {}", served->name, parsed.error().message);
    }
  }
  const std::lock_guard lock(mutex_);
  if (models_.contains(served->name)) {
    return make_error(ErrorCode::kExists, "a model named {} is served already", served->name);
  }
  models_[served->name] = served;
  return {};
}

std::shared_ptr<ServedModel> ModelRegistry::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const auto it = models_.find(name);
  return it == models_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<ServedModel>> ModelRegistry::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<ServedModel>> out;
  for (const auto& [name, served] : models_) out.push_back(served);
  return out;
}

void ModelRegistry::stop() {
  for (const auto& served : list()) served->engine->stop();
}

}  // namespace flywheel::serve
