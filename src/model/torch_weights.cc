#include "model/torch_weights.h"

#include <filesystem>

#include "base/file.h"
#include "model/gathered_weights.h"
#include "model/safetensors_internal.h"
#include "model/torch_file.h"
#include "model/torch_internal.h"

namespace flywheel::model {

bool is_torch_file_name(const std::string& path) {
  return path.ends_with(".pt") || path.ends_with(".bin") || path.ends_with(".pth");
}

void add_torch_tensor(GatheredWeights& weights, const std::string& name, const TorchFile& file,
                      const TorchTensor& tensor) {
  if (!tensor.dtype->dtype) {
    weights.add_unusable(name, make_error(ErrorCode::kInvalid,
                                          "{}: tensor {} is {}; float32, float16 and bfloat16 can be used",
                                          file.path(), name, tensor.dtype->name));
    return;
  }
  TensorInfo info{.name = name, .dtype = *tensor.dtype->dtype, .shape = tensor.shape};
  if (tensor.is_contiguous()) {
    weights.add(std::move(info), tensor.contiguous_bytes());
  } else {
    weights.add(std::move(info), [tensor](std::span<uint8_t> out) -> Result<void> {
      tensor.copy_to(out);
      return {};
    });
  }
}

namespace {

Result<std::vector<std::string>> add_file(GatheredWeights& weights, const std::string& path) {
  ASSIGN_OR_RETURN(TorchFile opened, TorchFile::open(path));
  const TorchFile& file = weights.keep(std::move(opened));
  ASSIGN_OR_RETURN(const std::vector<TorchFile::Named> found, file.tensors_below(file.root()));
  std::vector<std::string> names;
  for (const auto& [name, node] : found) {
    ASSIGN_OR_RETURN(const TorchTensor tensor, file.tensor(*node, name));
    add_torch_tensor(weights, name, file, tensor);
    names.push_back(name);
  }
  if (names.empty()) {
    return make_error(ErrorCode::kInvalid, "{}: no tensors in it; save the model's state_dict()", path);
  }
  return names;
}

}  // namespace

Result<std::unique_ptr<WeightSource>> open_torch_weights(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    auto weights = std::make_unique<GatheredWeights>(path, fs::path(path).parent_path().string());
    const auto added = add_file(*weights, path);
    if (!added.ok()) return added.error();
    RETURN_IF_ERROR(weights->finish());
    return std::unique_ptr<WeightSource>(std::move(weights));
  }
  auto weights = std::make_unique<GatheredWeights>(path, path);
  const std::string index = path + "/" + kTorchIndexName;
  std::map<std::string, std::set<std::string>> shards{{kTorchSingleName, {}}};
  if (path_exists(index)) {
    ASSIGN_OR_RETURN(shards, read_shard_index(index));
  }
  std::set<std::string> seen;
  for (const auto& [name, expected] : shards) {
    ASSIGN_OR_RETURN(const std::string shard, path_within(path, name));
    ASSIGN_OR_RETURN(const std::vector<std::string> names, add_file(*weights, shard));
    std::set<std::string> missing = expected;
    for (const std::string& tensor : names) {
      missing.erase(tensor);
      if (!seen.insert(tensor).second)
        return make_error(ErrorCode::kCorrupt, "{}: tensor {} is in another shard too", shard, tensor);
    }
    if (!missing.empty()) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: tensor {} should be here, says the index; the shard belongs to another version, "
                        "fetch the folder again",
                        shard, *missing.begin());
    }
  }
  RETURN_IF_ERROR(weights->finish());
  return std::unique_ptr<WeightSource>(std::move(weights));
}

}  // namespace flywheel::model
