// Writing safetensors: one file at a time, each whole or not at all; the index last.
#include <algorithm>
#include <set>

#include "base/hash.h"
#include "model/safetensors.h"
#include "model/safetensors_internal.h"

namespace flywheel::model {
namespace {

uint64_t size_of(const Tensor& tensor) {
  return static_cast<uint64_t>(tensor.elements() * kernels::block_bytes(tensor.dtype));
}

Result<void> check_size(const Tensor& tensor, std::span<const uint8_t> bytes) {
  if (bytes.size() == size_of(tensor)) return {};
  return make_error(ErrorCode::kInvalid, "cannot write tensor {}: {} bytes given, its shape needs {}",
                    tensor.name, bytes.size(), size_of(tensor));
}

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
    if (!shards.back().empty() && used + size_of(tensor) > max_bytes) {
      shards.emplace_back();
      used = 0;
    }
    used += size_of(tensor);
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

// Length of the header, and the header with the checksum of the data.
std::string header_of(const std::vector<const Tensor*>& order,
                      const std::map<std::string, std::string>& metadata, uint32_t crc) {
  OrderedJson header;
  OrderedJson& notes = header["__metadata__"];
  notes["format"] = "pt";
  for (const auto& [key, text] : metadata) notes[key] = text;
  notes[kSafetensorsChecksumKey] = fmt::format("{:08x}", crc);
  uint64_t at = 0;
  for (const Tensor* tensor : order) {
    header[tensor->name] = {{"dtype", safetensors_dtype_name(tensor->dtype)},
                            {"shape", tensor->shape},
                            {"data_offsets", {at, at + size_of(*tensor)}}};
    at += size_of(*tensor);
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  return length + text;
}

// Writes once; the checksum comes last, into a header of the same length.
Result<void> write_one(const std::string& path, std::span<const Tensor> tensors,
                       const std::map<std::string, std::string>& metadata, const TensorBytes& bytes_of) {
  std::set<std::string> names;
  for (const Tensor& tensor : tensors) RETURN_IF_ERROR(check_writable(tensor, names));
  const std::vector<const Tensor*> order = in_file_order(tensors);
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(header_of(order, metadata, 0)));
  uint32_t crc = 0;
  for (const Tensor* tensor : order) {
    std::span<const uint8_t> bytes = tensor->bytes;
    if (bytes_of) {
      ASSIGN_OR_RETURN(bytes, bytes_of(*tensor));
    }
    RETURN_IF_ERROR(check_size(*tensor, bytes));
    crc = crc32c(as_text(bytes), crc);
    RETURN_IF_ERROR(file.write(as_text(bytes)));
    file.start_sync();  // while the next one is made
  }
  RETURN_IF_ERROR(file.write_at(0, header_of(order, metadata, crc)));
  return file.commit();
}

}  // namespace

Result<void> write_safetensors_file(const std::string& path, std::span<const Tensor> tensors,
                                    const std::map<std::string, std::string>& metadata) {
  return write_one(path, tensors, metadata, nullptr);
}

Result<void> write_safetensors_folder(const std::string& folder, std::span<const Tensor> tensors,
                                      const SafetensorsOptions& options) {
  std::set<std::string> names;
  uint64_t total = 0;
  for (const Tensor& tensor : tensors) {
    RETURN_IF_ERROR(check_writable(tensor, names));
    total += size_of(tensor);
    if (!options.bytes) RETURN_IF_ERROR(check_size(tensor, tensor.bytes));
  }
  const auto shards = cut_into_shards(tensors, options.max_shard_bytes);
  RETURN_IF_ERROR(make_folders(folder));
  RETURN_IF_ERROR(remove_model(folder));
  if (shards.size() == 1) {
    return write_one(folder + "/" + kSafetensorsSingleName, shards.front(), options.metadata, options.bytes);
  }
  Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", Json::object()}};
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(i, shards.size());
    RETURN_IF_ERROR(write_one(folder + "/" + name, shards[i], options.metadata, options.bytes));
    for (const Tensor& tensor : shards[i]) index["weight_map"][tensor.name] = name;
  }
  return write_file(folder + "/" + kSafetensorsIndexName, index.dump(2) + "\n");
}

}  // namespace flywheel::model
