#include "model/open_model.h"

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "base/log.h"
#include "model/tokenizer.h"
#include "store/store.h"

namespace flywheel::model {
namespace {

// The path behind a name: itself, or what the store has under it.
Result<std::string> resolve(const std::string& name) {
  if (path_exists(name)) return name;
  if (name.ends_with(".gguf") || name.ends_with(".safetensors") || name.starts_with("/") ||
      name.starts_with(".")) {
    return make_error(ErrorCode::kNotFound, "{}: no such file or folder", name);
  }
  ASSIGN_OR_RETURN(store::Store store, store::Store::open());
  const Result<store::Artifact> artifact = store.resolve(name);
  if (!artifact.ok()) {
    return make_error(ErrorCode::kNotFound,
                      "no model \"{}\": not a file or folder here, and in the store: {}", name,
                      artifact.error().message);
  }
  return store.path_of(artifact.value());
}

std::string name_of(const std::string& asked, const std::string& path) {
  if (asked != path) return asked;
  const std::filesystem::path as_path = std::filesystem::path(path).lexically_normal();
  return as_path.has_filename() ? as_path.stem().string() : as_path.parent_path().filename().string();
}

// config.json's and the tokenizer's; generation_config.json's where a folder has one, as chat models say
// there which tokens end a turn.
std::vector<int32_t> end_tokens(const OpenModel& model) {
  std::vector<int32_t> ids;
  const auto add = [&](int64_t id) {
    const auto small = static_cast<int32_t>(id);
    if (id < 0 || id >= model.decoder.config.vocab_size) return;
    if (std::ranges::find(ids, small) == ids.end()) ids.push_back(small);
  };
  for (const int64_t id : model.decoder.config.eos_tokens) add(id);
  if (model.tokenizer) {
    for (const TokenId id : model.tokenizer->end_tokens()) add(id);
  }
  const Result<std::string> text = read_file(model.path + "/generation_config.json");
  const Result<Json> config = text.ok() ? parse_json(text.value()) : Result<Json>(Json());
  if (config.ok() && config->is_object() && config->contains("eos_token_id")) {
    const Json& eos = (*config)["eos_token_id"];
    for (const Json& id : eos.is_array() ? eos : Json::array({eos})) {
      if (id.is_number_integer()) add(id.get<int64_t>());
    }
  }
  return ids;
}

}  // namespace

Result<OpenModel> open_model(const std::string& name_or_path) {
  OpenModel model;
  ASSIGN_OR_RETURN(model.path, resolve(name_or_path));
  model.name = name_of(name_or_path, model.path);
  ASSIGN_OR_RETURN(std::unique_ptr<WeightSource> source, open_weights(model.path));
  ASSIGN_OR_RETURN(const Json json, source->config());
  Result<DecoderConfig> config = decoder_config_from_hf(json);
  if (!config.ok()) return make_error(config.error().code, "{}: {}", model.path, config.error().message);
  model.decoder = describe(config.value());
  Result<Tokenizer> tokenizer = Tokenizer::load(source->path());
  if (tokenizer.ok()) {
    model.tokenizer = std::make_shared<const Tokenizer>(std::move(tokenizer).value());
  } else if (tokenizer.error().code != ErrorCode::kNotFound) {
    return tokenizer.error();
  } else {
    LOG_WARN("{}: no tokenizer; prompts must be token ids", model.path);
  }
  if (model.tokenizer && model.tokenizer->vocab_size() > model.decoder.config.vocab_size) {
    LOG_WARN("{}: the tokenizer has {} tokens and the model {}; prompts with the others are refused",
             model.path, model.tokenizer->vocab_size(), model.decoder.config.vocab_size);
  }
  model.source = std::move(source);
  model.end_tokens = end_tokens(model);
  return model;
}

}  // namespace flywheel::model
