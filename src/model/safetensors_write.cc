// Writing safetensors: one file at a time, each whole or not at all; the index last.
#include <algorithm>
#include <set>

#include "base/hash.h"
#include "model/safetensors.h"
#include "model/safetensors_internal.h"

namespace flywheel::model {
namespace {

Result<void> check_writable(const Tensor& tensor, std::set<std::string>& names) {
  if (tensor.name.empty() || tensor.name == "__metadata__" || !names.insert(tensor.name).second) {
    return make_error(ErrorCode::kInvalid,
                      "cannot write tensor \"{}\": the name is empty, reserved or used twice", tensor.name);
  }
  if (safetensors_dtype_name(tensor.dtype) == nullptr) {
    return make_error(ErrorCode::kInvalid,
                      "cannot write tensor {}: safetensors has no {}; convert it to f32 or bf16 first",
                      tensor.name, kernels::dtype_name(tensor.dtype));
  }
  const auto wanted = static_cast<uint64_t>(tensor.elements() * kernels::block_bytes(tensor.dtype));
  if (tensor.bytes.size() != wanted) {
    return make_error(ErrorCode::kInvalid, "cannot write tensor {}: {} bytes given, its shape needs {}",
                      tensor.name, tensor.bytes.size(), wanted);
  }
  return {};
}

std::string_view as_text(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Wide types first keeps every tensor aligned to its element.
std::vector<const Tensor*> in_file_order(std::span<const Tensor> tensors) {
  std::vector<const Tensor*> order;
  for (const Tensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const Tensor* a, const Tensor* b) {
    const int64_t wide_a = kernels::block_bytes(a->dtype), wide_b = kernels::block_bytes(b->dtype);
    return wide_a != wide_b ? wide_a > wide_b : a->name < b->name;
  });
  return order;
}

std::string shard_name(size_t i, size_t n) {
  return fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, n);
}

// Tensors in the order given, a new shard where the limit would be passed.
std::vector<std::vector<Tensor>> cut_into_shards(std::span<const Tensor> tensors, uint64_t max_bytes) {
  std::vector<std::vector<Tensor>> shards(1);
  uint64_t used = 0;
  for (const Tensor& tensor : tensors) {
    if (!shards.back().empty() && used + tensor.bytes.size() > max_bytes) {
      shards.emplace_back();
      used = 0;
    }
    used += tensor.bytes.size();
    shards.back().push_back(tensor);
  }
  return shards;
}

// Takes an older model's files away, the visible one first.
Result<void> remove_model(const std::string& folder) {
  for (const char* name : {kSafetensorsIndexName, kSafetensorsSingleName}) {
    RETURN_IF_ERROR(remove_all(folder + "/" + name));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, list_folder(folder));
  for (const std::string& name : names) {
    if (name.starts_with("model-") && name.ends_with(".safetensors"))
      RETURN_IF_ERROR(remove_all(folder + "/" + name));
  }
  return {};
}

}  // namespace

Result<void> write_safetensors_file(const std::string& path, std::span<const Tensor> tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::set<std::string> names;
  for (const Tensor& tensor : tensors) RETURN_IF_ERROR(check_writable(tensor, names));
  const std::vector<const Tensor*> order = in_file_order(tensors);

  uint32_t crc = 0;
  for (const Tensor* tensor : order) crc = crc32c(as_text(tensor->bytes), crc);
  OrderedJson header;
  OrderedJson& notes = header["__metadata__"];
  notes["format"] = "pt";
  for (const auto& [key, text] : metadata) notes[key] = text;
  notes[kSafetensorsChecksumKey] = fmt::format("{:08x}", crc);
  uint64_t at = 0;
  for (const Tensor* tensor : order) {
    header[tensor->name] = {{"dtype", safetensors_dtype_name(tensor->dtype)},
                            {"shape", tensor->shape},
                            {"data_offsets", {at, at + tensor->bytes.size()}}};
    at += tensor->bytes.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);

  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(length));
  RETURN_IF_ERROR(file.write(text));
  for (const Tensor* tensor : order) RETURN_IF_ERROR(file.write(as_text(tensor->bytes)));
  return file.commit();
}

Result<void> write_safetensors_folder(const std::string& folder, std::span<const Tensor> tensors,
                                      const SafetensorsOptions& options) {
  std::set<std::string> names;
  uint64_t total = 0;
  for (const Tensor& tensor : tensors) {
    RETURN_IF_ERROR(check_writable(tensor, names));
    total += tensor.bytes.size();
  }
  const auto shards = cut_into_shards(tensors, options.max_shard_bytes);
  RETURN_IF_ERROR(make_folders(folder));
  RETURN_IF_ERROR(remove_model(folder));
  if (shards.size() == 1) {
    return write_safetensors_file(folder + "/" + kSafetensorsSingleName, shards.front(), options.metadata);
  }
  Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", Json::object()}};
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(i, shards.size());
    RETURN_IF_ERROR(write_safetensors_file(folder + "/" + name, shards[i], options.metadata));
    for (const Tensor& tensor : shards[i]) index["weight_map"][tensor.name] = name;
  }
  return write_file(folder + "/" + kSafetensorsIndexName, index.dump(2) + "\n");
}

}  // namespace flywheel::model
