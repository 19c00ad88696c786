// Hugging Face's folder as a WeightSource: one file, or shards found through their index.
#include <algorithm>
#include <filesystem>

#include "model/hf_config.h"
#include "model/safetensors.h"
#include "model/safetensors_internal.h"

namespace flywheel::model {
namespace {

class SafetensorsWeights : public WeightSource {
 public:
  SafetensorsWeights(std::string path, std::string folder)
      : path_(std::move(path)), folder_(std::move(folder)) {}

  const std::string& path() const override { return path_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  Result<Json> config() const override { return read_hf_config(folder_); }

  Result<Tensor> tensor(const std::string& name) const override {
    const auto it = file_of_.find(name);
    if (it == file_of_.end()) return make_error(ErrorCode::kNotFound, "{}: no tensor {}", path_, name);
    return files_[it->second].tensor(name);
  }

  // `expected`: the names that the index places in this file; empty without an index.
  Result<void> add(const std::string& path, const std::set<std::string>& expected) {
    ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::open(path));
    std::set<std::string> missing = expected;
    for (const SafetensorsEntry& entry : file.entries()) {
      missing.erase(entry.name);
      if (!file_of_.emplace(entry.name, files_.size()).second) {
        return make_error(ErrorCode::kCorrupt, "{}: tensor {} is in another shard too", path, entry.name);
      }
      // Integer buffers of old checkpoints stay reachable by name, where they give their error.
      if (auto tensor = file.tensor(entry.name); tensor.ok()) tensors_.push_back(tensor.value());
    }
    if (!missing.empty()) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: tensor {} should be here, says the index; the shard belongs to another "
                        "version, fetch the folder again",
                        path, *missing.begin());
    }
    files_.push_back(std::move(file));
    return {};
  }

  void finish() {
    std::sort(tensors_.begin(), tensors_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  }

 private:
  std::string path_, folder_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, size_t> file_of_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace

Result<std::map<std::string, std::set<std::string>>> read_shard_index(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, read_file(path));
  auto index = parse_json(text);
  if (!index.ok()) return make_error(ErrorCode::kCorrupt, "{}: {}", path, index.error().message);
  if (!index->is_object() || !index->contains("weight_map") || !(*index)["weight_map"].is_object()) {
    return make_error(ErrorCode::kCorrupt, "{}: has no object weight_map", path);
  }
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [name, shard] : (*index)["weight_map"].items()) {
    if (!shard.is_string())
      return make_error(ErrorCode::kCorrupt, "{}: weight_map.{} is no file name", path, name);
    shards[shard.get<std::string>()].insert(name);
  }
  return shards;
}

Result<std::unique_ptr<WeightSource>> open_safetensors_weights(const std::string& path) {
  namespace fs = std::filesystem;
  if (path.ends_with(".safetensors")) {
    auto source = std::make_unique<SafetensorsWeights>(path, fs::path(path).parent_path().string());
    RETURN_IF_ERROR(source->add(path, {}));
    source->finish();
    return std::unique_ptr<WeightSource>(std::move(source));
  }
  auto source = std::make_unique<SafetensorsWeights>(path, path);
  const std::string index = path + "/" + kSafetensorsIndexName;
  if (path_exists(index)) {
    ASSIGN_OR_RETURN(const auto shards, read_shard_index(index));
    for (const auto& [name, tensors] : shards) {
      ASSIGN_OR_RETURN(const std::string shard, path_within(path, name));
      RETURN_IF_ERROR(source->add(shard, tensors));
    }
  } else {
    RETURN_IF_ERROR(source->add(path + "/" + kSafetensorsSingleName, {}));
  }
  source->finish();
  return std::unique_ptr<WeightSource>(std::move(source));
}

}  // namespace flywheel::model
